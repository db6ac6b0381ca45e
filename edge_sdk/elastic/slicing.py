"""A submodel as index ranges: for every parameter, which part of it the submodel holds.

Parameters keep their full-model names, so an update needs no other description of where it belongs. Functions work on
plain mappings ``name -> array``, and only :func:`scatter` and the argument ``into`` change one. Shapes are those of the
full model unless said otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.families import Axis, Family, Unit
from edge_sdk.elastic.submodel import Architecture, Submodel

Array = NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]
Index = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """The part of one parameter that a submodel holds: for each axis, disjoint ranges in ascending order.

    Nearly always there is one range per axis. A fused q-k-v weight has three, a rolling window that wraps around two.
    """

    axes: tuple[tuple[range, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        return tuple(sum(map(len, ranges)) for ranges in self.axes)

    @property
    def size(self) -> int:
        """The number of entries of the part."""
        return math.prod(self.shape)

    def rectangles(self) -> Iterator[tuple[Index, Index]]:
        """The rectangles that make up the part: where each lies in the full parameter, and where in the part."""
        for pieces in itertools.product(*map(_pieces, self.axes)):
            yield tuple(whole for whole, _ in pieces), tuple(part for _, part in pieces)

    def cut(self, full: Array, into: Array) -> None:
        """Copy the part of ``full`` to ``into``, which has :attr:`shape`."""
        for whole, part in self.rectangles():
            np.copyto(into[part], full[whole])

    def put(self, full: Array, part: Array) -> None:
        """Copy ``part`` to its place in ``full``."""
        for whole, piece in self.rectangles():
            full[whole] = part[piece]


Slices = dict[str, Region]


def overlaps(one: Region, other: Region) -> Iterator[tuple[Index, Index]]:
    """The rectangles that two regions share: where each lies in the part of ``one``, and where in that of ``other``."""
    axes = (list(_shared(*ranges)) for ranges in zip(one.axes, other.axes, strict=True))
    for pieces in itertools.product(*axes):
        yield tuple(first for first, _ in pieces), tuple(second for _, second in pieces)


def full_shapes(shapes: Shapes, architecture: Architecture, family: Family) -> dict[str, tuple[int, ...]]:
    """The full model's shapes of the parameters whose shapes in a submodel are ``shapes``."""
    full = {}
    for name, shape in shapes.items():
        axes = family.axes(name) or (None,) * len(shape)
        full[name] = tuple(
            size if axis is None else axis.size(architecture) for axis, size in zip(axes, shape, strict=True)
        )
    return full


def slices_of(submodel: Submodel, architecture: Architecture, family: Family, shapes: Shapes) -> Slices:
    """The region of each parameter that ``submodel`` keeps; parameters of dropped layers are absent.

    ``shapes`` are the full model's. Raises ``ConfigurationError`` if the submodel exceeds ``architecture``.
    """
    submodel.check(architecture)
    windows = _Windows(submodel, architecture)
    slices = {}
    for name, shape in shapes.items():
        layer = family.layer_index(name, architecture)
        if layer is None and family.axes(name):  # a stack's position bias
            layer = windows.first_of(family.stack_index(name))
        if layer is None or layer in windows.layers:
            axes = family.axes(name) or (None,) * len(shape)
            slices[name] = Region(
                tuple(
                    (range(size),) if axis is None else windows.ranges(axis, layer, size)
                    for axis, size in zip(axes, shape, strict=True)
                )
            )
    return slices


class _Windows:
    """The ranges of an elastic axis that a submodel keeps, by layer."""

    def __init__(self, submodel: Submodel, architecture: Architecture) -> None:
        self._architecture = architecture
        self.layers = {layer: place for place, layer in enumerate(submodel.layers)}
        self._counts = {Unit.HEADS: submodel.heads, Unit.FFN: submodel.ffn}
        self._rank = submodel.adapter_rank
        self._first = {Unit.HEADS: submodel.first_head, Unit.FFN: submodel.first_neuron}
        self._most = {Unit.HEADS: architecture.heads, Unit.FFN: architecture.ffn}

    def first_of(self, stack: int | None) -> int:
        """The first kept layer of a stack."""
        layers = self._architecture.stacks[stack or 0]
        return next(layer for layer in self.layers if layer in layers)

    def ranges(self, axis: Axis, layer: int | None, size: int) -> tuple[range, ...]:
        """The entries of ``axis``, ``size`` long, that ``layer`` keeps."""
        if axis.unit is Unit.RANK:
            return (range(self._rank),)
        if layer is None:
            raise AssertionError(axis)
        units = self._units(axis.unit, self._counts[axis.unit][self.layers[layer]])
        entries, block = axis.entries(self._architecture), size // axis.blocks
        return tuple(
            range(start + unit.start * entries, start + unit.stop * entries)
            for start in range(0, size, block)
            for unit in units
        )

    def _units(self, unit: Unit, count: int) -> tuple[range, ...]:
        """``count`` units from the window's first on, wrapping around at the end: ranges in ascending order."""
        first, most = self._first[unit], self._most[unit]
        past_end = first + count - most
        if count == most:
            return (range(most),)
        return (range(past_end), range(first, most)) if past_end > 0 else (range(first, first + count),)


def _pieces(ranges: tuple[range, ...]) -> Iterator[tuple[slice, slice]]:
    start = 0
    for part in ranges:
        yield slice(part.start, part.stop), slice(start, start + len(part))
        start += len(part)


def _shared(one: tuple[range, ...], other: tuple[range, ...]) -> Iterator[tuple[slice, slice]]:
    """Where two sets of ranges overlap, as positions in each set packed end to end."""
    for (first, in_first), (second, in_second) in itertools.product(_pieces(one), _pieces(other)):
        low, high = max(first.start, second.start), min(first.stop, second.stop)
        if low < high:
            shifts = in_first.start - first.start, in_second.start - second.start
            yield slice(low + shifts[0], high + shifts[0]), slice(low + shifts[1], high + shifts[1])


def shapes_of(slices: Slices) -> dict[str, tuple[int, ...]]:
    """The shapes of the submodel's own parameters."""
    return {name: region.shape for name, region in slices.items()}


def extract(
    parameters: Mapping[str, Array], slices: Slices, into: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The submodel's parameters as contiguous copies, made in one pass over its own bytes.

    ``into`` holds arrays of the submodel's shapes to reuse, as an earlier call returned them: writing to memory that
    has been touched before is twice as fast.
    """
    if into is None:
        into = {name: np.empty(region.shape, parameters[name].dtype) for name, region in slices.items()}
    for name, region in slices.items():
        region.cut(parameters[name], into[name])
    return {name: into[name] for name in slices}


def scatter(parameters: Mapping[str, Array], slices: Slices, part: Mapping[str, Array]) -> None:
    """Write the submodel's values back into the full model's arrays, in place."""
    for name, values in part.items():
        slices[name].put(parameters[name], values)
