"""Hugging Face modules of a foundation model or of one of its submodels: for export and as the reference in checks.

In transformers 5 an attention module views its projections as (batch, tokens, -1, head size), so the same module whose
weights are narrower simply runs: a submodel needs no class of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from coordinator.models.foundation import Foundation
from edge_sdk.elastic.families import Family
from edge_sdk.elastic.slicing import Array, extract, slices_of
from edge_sdk.elastic.submodel import Submodel, full


def torch_module(
    foundation: Foundation, submodel: Submodel | None = None, parameters: Mapping[str, Array] | None = None
) -> nn.Module:
    """``submodel`` (default: all) of the full model's ``parameters`` (default: the foundation's own), in eval mode.

    Raises ``ConfigurationError`` where the submodel asks for more than the model has.
    """
    submodel = submodel or full(foundation.architecture)
    parameters = foundation.parameters if parameters is None else parameters
    shapes = {name: values.shape for name, values in parameters.items()}
    part = extract(parameters, slices_of(submodel, foundation.architecture, foundation.family, shapes))
    module = bare_module(foundation, len(submodel.layers))
    for name in [name for name, _ in module.named_parameters()]:
        owner, leaf = name.rsplit(".", 1)
        values = part[full_name(name, foundation.family, submodel)]
        setattr(module.get_submodule(owner), leaf, nn.Parameter(torch.from_numpy(values)))
    return module


def bare_module(foundation: Foundation, layers: int) -> nn.Module:
    """The foundation's architecture with ``layers`` layers and random weights, in eval mode: dropout does nothing."""
    settings = json.loads(foundation.config_json)
    config = AutoConfig.for_model(**settings)
    config.num_hidden_layers = layers
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").float().eval()


def full_name(name: str, family: Family, submodel: Submodel) -> str:
    """The full-model name of a parameter of a module that holds only the submodel's layers, numbered from 0."""
    index = family.layer_index(name)
    if index is None:
        return name
    return family.layer.format(submodel.layers[index]) + name.removeprefix(family.layer.format(index))
