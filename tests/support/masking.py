"""The full model with everything outside of a submodel switched off: what the submodel must equal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from coordinator.models.foundation import Foundation
from edge_sdk.elastic.families import Axis
from edge_sdk.elastic.slicing import Array, slices_of
from edge_sdk.elastic.submodel import AdapterMethod, Submodel


def masked(foundation: Foundation, submodel: Submodel) -> dict[str, Array]:
    """The parameters with the heads, neurons and ranks of ``submodel`` kept and all others zero.

    DoRA divides by the norm of each output's weights, so there only what reads the outputs is zeroed.
    """
    adapters, parameters = foundation.architecture.adapters, foundation.parameters
    keeps_outputs = adapters is not None and adapters.method is AdapterMethod.DORA
    shapes = {name: values.shape for name, values in parameters.items()}
    slices = slices_of(submodel, foundation.architecture, foundation.family, shapes)
    result = dict(parameters)
    for name, region in slices.items():
        if not (keeps_outputs and _is_output(name, foundation)):
            part = np.empty(region.shape, parameters[name].dtype)
            region.cut(parameters[name], part)
            result[name] = np.zeros_like(parameters[name])
            region.put(result[name], part)
    return result


def _is_output(name: str, foundation: Foundation) -> bool:
    axes: Mapping[int, Axis | None] = dict(enumerate(foundation.family.axes(name)))
    out = 1 if foundation.family.is_transposed and "lora_" not in name else 0
    return axes.get(out) not in {None, Axis.RANK}


def drop_layers(module: nn.Module, foundation: Foundation, kept: tuple[int, ...]) -> None:
    """Take all other layers out of the lists of ``module``, the full model; a position bias moves to the first left."""
    for stack, layers in zip(foundation.family.stacks, foundation.architecture.stacks, strict=True):
        owner, _, name = stack.layer.partition(".{}")[0].rpartition(".")
        blocks = getattr(module.get_submodule(owner), name)
        left = [blocks[layer - layers.start] for layer in kept if layer in layers]
        if stack.position_bias:
            attention, _, bias = stack.position_bias.rpartition(".")
            first = left[0].get_submodule(attention)
            first.has_relative_attention_bias = True
            setattr(first, bias, getattr(blocks[0].get_submodule(attention), bias))
        setattr(module.get_submodule(owner), name, nn.ModuleList(left))
    if getattr(module.config, "layer_types", None):
        module.config.layer_types = [module.config.layer_types[layer] for layer in kept]
