"""A submodel as index ranges: for every parameter, which part of it the submodel holds.

Parameters keep their full-model names, so an update says by itself where it belongs. All functions are pure and work on
plain mappings ``name -> array``; shapes are the full model's unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.families import Family, Unit
from edge_sdk.elastic.submodel import Architecture, Submodel

Array = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]
Slices = dict[str, tuple[slice, ...]]


def slices_of(submodel: Submodel, architecture: Architecture, family: Family, shapes: Shapes) -> Slices:
    """The prefix ranges of each parameter that ``submodel`` keeps; parameters of dropped layers are absent.

    Raises ``ConfigurationError`` where the submodel asks for more than the architecture has.
    """
    submodel.check(architecture)
    widths = {
        layer: {Unit.HEADS: heads * architecture.head_size, Unit.FFN: ffn}
        for layer, heads, ffn in zip(submodel.layers, submodel.heads, submodel.ffn, strict=True)
    }
    return {
        name: _ranges(family.axes(name), shape, widths.get(layer, {}) if layer is not None else {})
        for name, shape in shapes.items()
        if (layer := family.layer_index(name)) is None or layer in widths
    }


def _ranges(axes: tuple[Unit | None, ...], shape: tuple[int, ...], widths: Mapping[Unit, int]) -> tuple[slice, ...]:
    return tuple(slice(0, size if unit is None else widths[unit]) for unit, size in zip(axes, shape, strict=True))


def shapes_of(slices: Slices) -> dict[str, tuple[int, ...]]:
    """The shapes of the submodel's own parameters."""
    return {name: tuple(axis.stop - axis.start for axis in axes) for name, axes in slices.items()}


def extract(
    parameters: Mapping[str, Array], slices: Slices, into: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Cut the submodel out: contiguous copies, one pass over its own bytes.

    ``into`` holds arrays of the submodel's shapes to reuse, as an earlier cut returned them: memory that has been
    touched before is written at twice the speed of fresh memory.
    """
    if into is None:
        return {name: np.array(parameters[name][axes], order="C") for name, axes in slices.items()}
    for name, axes in slices.items():
        np.copyto(into[name], parameters[name][axes])
    return {name: into[name] for name in slices}


def scatter(parameters: dict[str, Array], slices: Slices, part: Mapping[str, Array]) -> None:
    """Write the submodel's values back into the full model's arrays, in place."""
    for name, values in part.items():
        parameters[name][slices[name]] = values
