"""Merges adapters into the weights that they adapt, so that graphs without adapters can run the model.

A submodel is cut out first and merged then, so that it computes what a device trains. That is the same as the merged
model cut, but for one case: DoRA divides each row of W + s·B·A by its norm, and a row that is cut has a smaller one.
Modules whose inputs are elastic, an attention's output and an FFN's second, are therefore no targets of DoRA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from coordinator.aggregation.low_rank import adapted_modules, factor_names
from coordinator.models.foundation import Foundation
from coordinator.models.templates import Templates
from edge_sdk.elastic.families import Axis, family_of, is_adapter
from edge_sdk.elastic.slicing import Array, extract, slices_of
from edge_sdk.elastic.submodel import Adapters, Architecture, Submodel

_MAGNITUDE, _SCALES = ".lora_magnitude_vector.weight", ".ia3_l"


def without_adapters(foundation: Foundation) -> Foundation:
    """The model without its adapters."""
    return replace(
        foundation,
        architecture=replace(foundation.architecture, adapters=None),
        parameters={name: values for name, values in foundation.parameters.items() if not is_adapter(name)},
    )


def graph_parameters(templates: Templates, submodel: Submodel, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters that a graph of ``submodel`` takes, cut out of the full model's, with adapters merged if needed.

    Raises ``ConfigurationError`` where the submodel asks for more than the model has.
    """
    shapes = {name: values.shape for name, values in parameters.items()}
    part = extract(parameters, slices_of(submodel, templates.architecture, templates.family, shapes))
    return part if templates.architecture.has_graph else merged(part, templates.architecture)


def merged(parameters: Mapping[str, Array], architecture: Architecture) -> dict[str, Array]:
    """The parameters of the same function without adapters, for a model or a submodel cut out of it.

    In the precision of ``parameters``; what is not adapted is not copied.
    """
    result = {name: values for name, values in parameters.items() if not is_adapter(name)}
    if architecture.adapters is not None:
        is_transposed = family_of(architecture.family).is_transposed
        for module in adapted_modules(parameters):
            weight = _with_factors(module, parameters, architecture.adapters, is_transposed=is_transposed)
            result[f"{module}.weight"] = weight.astype(parameters[f"{module}.weight"].dtype)
        for module in _scaled_modules(parameters):
            result |= _scaled(module, parameters, architecture)
    return result


def _with_factors(module: str, parameters: Mapping[str, Array], adapters: Adapters, *, is_transposed: bool) -> Array:
    """The weight of a module with LoRA's factors and, where there is a magnitude, of DoRA's norms."""
    a, b = (parameters[name] for name in factor_names(module))
    weight, step = parameters[f"{module}.weight"], adapters.scale * (b @ a)
    weight = weight + (step.T if is_transposed else step)
    if (magnitude := parameters.get(module + _MAGNITUDE)) is None:
        return weight
    inputs = 0 if is_transposed else 1
    norms = np.linalg.norm(weight, axis=inputs, keepdims=True)
    return weight * np.expand_dims(magnitude, inputs) / norms


def _scaled_modules(names: Iterable[str]) -> list[str]:
    return [name.removesuffix(_SCALES) for name in names if name.endswith(_SCALES)]


def _scaled(module: str, parameters: Mapping[str, Array], architecture: Architecture) -> dict[str, Array]:
    """Weight and bias of a module with IA3's scales, (1, in) or (out, 1) as PEFT has them."""
    family, weight, bias = family_of(architecture.family), f"{module}.weight", f"{module}.bias"
    scales = parameters[module + _SCALES]
    made = {weight: parameters[weight] * (scales.T if family.is_transposed else scales)}
    scales_inputs = Axis.FFN in family.axes(module + _SCALES)[1:]
    if bias in parameters and not scales_inputs:
        made[bias] = parameters[bias] * scales[:, 0]
    return made
