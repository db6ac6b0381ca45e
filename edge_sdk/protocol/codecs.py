"""How each encoding stores one parameter's values as parts of a tensor file, and reads any range of them.

The type and shape of every part follow from the parameter's shape alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.random import BitGenerator
from numpy.typing import NDArray

from edge_sdk.elastic.slicing import Array
from edge_sdk.protocol.halves import from_half, to_half
from edge_sdk.protocol.tensors import Spec

VALUES, SCALE, INDEX = "", ":scale", ":index"
"""The suffix of a parameter's name for each part."""
BLOCK = 32 * 1024
"""Entries that are processed at a time: together with everything computed from them, they fit a processor's cache."""
Shape = tuple[int, ...]
Parts = dict[str, NDArray[Any]]
Read = Callable[[str, int, NDArray[Any]], object]
"""``read(part, first, into)`` fills the flat array ``into`` with a part's entries, from entry ``first`` on."""

_F32, _F16, _I8, _U32 = (np.dtype(name) for name in ("<f4", "<f2", "i1", "<u4"))
_MAX_INT8 = 127
_FIXED_BITS = 16  # below the binary point, for stochastic rounding
_MIN_SCALE = np.float32(2**-100)  # the inverse of a smaller one overflows


class Flaw(str, Enum):
    """Why parts of the right table cannot be decoded."""

    SCALE = "scale"
    INDEX = "index"


class Codec(Protocol):
    """One encoding."""

    def table(self, shape: Shape) -> dict[str, Spec]:
        """The parts that store a parameter: type and shape by suffix."""

    def encode(self, values: Array, seeds: Sequence[int]) -> Parts:
        """The parts that store ``values``, which are finite, float32 and contiguous. ``seeds`` decide the rounding."""

    def flaw(self, shape: Shape, read: Read) -> tuple[Flaw, str] | None:
        """Why the parts cannot be decoded, also in words; ``None`` if they can. Non-finite values are not checked."""

    def decode(self, shape: Shape, first: int, into: Array, read: Read) -> None:
        """Fill the flat ``into`` with values from entry ``first`` on, in C order: whole rows, or part of a vector."""


def rows_of(shape: Shape) -> tuple[int, int]:
    """(rows, entries per row) of a parameter: the first axis, and all others. A vector is one row."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def row_blocks(shape: Shape, most: int) -> Iterator[range]:
    """Ranges of entries in C order that cover a parameter: whole rows of at most ``most`` entries together.

    A row with more entries is a range of its own; a parameter of a single row is cut into pieces of ``most``.
    """
    rows, width = rows_of(shape)
    step = most if rows == 1 else max(1, most // max(1, width)) * max(1, width)
    return (range(first, min(first + step, rows * width)) for first in range(0, rows * width, step))


@dataclass(frozen=True, slots=True)
class Fp32:
    """Float32 values, unchanged."""

    def table(self, shape: Shape) -> dict[str, Spec]:
        """See :class:`Codec`."""
        return {VALUES: (_F32, shape)}

    def encode(self, values: Array, _: Sequence[int]) -> Parts:
        """See :class:`Codec`."""
        return {VALUES: values}

    def flaw(self, _: Shape, __: Read) -> None:
        """See :class:`Codec`."""

    def decode(self, _: Shape, first: int, into: Array, read: Read) -> None:
        """See :class:`Codec`."""
        read(VALUES, first, into)


@dataclass(frozen=True, slots=True)
class Fp16:
    """Float16 values: half the bytes."""

    def table(self, shape: Shape) -> dict[str, Spec]:
        """See :class:`Codec`."""
        return {VALUES: (_F16, shape)}

    def encode(self, values: Array, _: Sequence[int]) -> Parts:
        """See :class:`Codec`."""
        return {VALUES: to_half(values)}

    def flaw(self, _: Shape, __: Read) -> None:
        """See :class:`Codec`."""

    def decode(self, _: Shape, first: int, into: Array, read: Read) -> None:
        """See :class:`Codec`."""
        halves = np.empty(into.size, _F16)
        read(VALUES, first, halves)
        from_half(halves, into)


@dataclass(frozen=True, slots=True)
class Int8:
    """Int8 values, a quarter of the bytes, and a scale per row: its largest magnitude over 127, slightly enlarged."""

    def table(self, shape: Shape) -> dict[str, Spec]:
        """See :class:`Codec`."""
        return {SCALE: (_F32, (rows_of(shape)[0],)), VALUES: (_I8, shape)}

    def encode(self, values: Array, seeds: Sequence[int]) -> Parts:
        """See :class:`Codec`. Rounds in fixed point: adds random bits below the binary point, then drops those bits."""
        scales, rounded, random = _scales(values), np.empty(values.size, _I8), np.random.SFC64(list(seeds))
        factors = np.divide(1 << _FIXED_BITS, scales, out=np.zeros_like(scales), where=scales > 0)
        fixed, flat = np.empty(max(BLOCK, rows_of(values.shape)[1]), np.int32), values.reshape(-1)
        for block in row_blocks(values.shape, BLOCK):
            rows, points = _rows_in(values.shape, block), fixed[: len(block)]
            part, grid = (array.reshape(len(rows), -1) for array in (flat[block.start : block.stop], points))
            np.multiply(part, factors[rows.start : rows.stop, None], out=grid, casting="unsafe")
            points += _random_bits(random, len(block))
            points >>= _FIXED_BITS
            rounded[block.start : block.stop] = points
        return {SCALE: scales, VALUES: rounded.reshape(values.shape)}

    def flaw(self, shape: Shape, read: Read) -> tuple[Flaw, str] | None:
        """See :class:`Codec`."""
        scales = np.empty(rows_of(shape)[0], _F32)
        read(SCALE, 0, scales)
        bad = scales[~(np.isfinite(scales) & (scales >= 0))]
        return (Flaw.SCALE, f"{bad.size} scales are negative or not finite, the first {bad[0]}") if bad.size else None

    def decode(self, shape: Shape, first: int, into: Array, read: Read) -> None:
        """See :class:`Codec`."""
        rows = _rows_in(shape, range(first, first + into.size))
        rounded, scales = np.empty(into.size, _I8), np.empty(len(rows), _F32)
        read(VALUES, first, rounded)
        read(SCALE, rows.start, scales)
        np.multiply(rounded.reshape(len(rows), -1), scales[:, None], out=into.reshape(len(rows), -1))


@dataclass(frozen=True, slots=True)
class TopK:
    """The ``share`` of entries with the largest magnitudes, at least one; six bytes each."""

    share: float

    def table(self, shape: Shape) -> dict[str, Spec]:
        """See :class:`Codec`."""
        count = self._count(shape)
        return {INDEX: (_U32, (count,)), VALUES: (_F16, (count,))}

    def encode(self, values: Array, _: Sequence[int]) -> Parts:
        """See :class:`Codec`. Of entries with equal magnitudes, the first are taken."""
        flat, count = values.reshape(-1), self._count(values.shape)
        sizes = np.abs(flat)
        least = np.partition(sizes, -count)[-count]
        places = np.flatnonzero(sizes >= least)
        if places.size > count:
            ties = np.flatnonzero(sizes[places] == least)
            places = np.delete(places, ties[count - places.size :])
        return {INDEX: places.astype(_U32), VALUES: to_half(flat[places])}

    def flaw(self, shape: Shape, read: Read) -> tuple[Flaw, str] | None:
        """See :class:`Codec`."""
        last = -1
        for block in row_blocks((self._count(shape),), BLOCK):
            places = np.empty(len(block), _U32)
            read(INDEX, block.start, places)
            rises = np.diff(places.astype(np.int64), prepend=last)
            if rises.min() < 1:
                return Flaw.INDEX, f"place {places[rises.argmin()]} comes after one that is not below it"
            last = int(places[-1])
        size = math.prod(shape)
        return (Flaw.INDEX, f"place {last} is beyond the {size} entries") if last >= size else None

    def decode(self, shape: Shape, first: int, into: Array, read: Read) -> None:
        """See :class:`Codec`."""
        low, high = (self._sent_before(entry, shape, read) for entry in (first, first + into.size))
        places, halves, values = (np.empty(high - low, dtype) for dtype in (_U32, _F16, _F32))
        read(INDEX, low, places)
        read(VALUES, low, halves)
        from_half(halves, values)
        into.fill(0)
        into[places - np.uint32(first)] = values

    def _count(self, shape: Shape) -> int:
        return max(1, math.ceil(self.share * math.prod(shape)))

    def _sent_before(self, entry: int, shape: Shape, read: Read) -> int:
        """How many of the stored places lie before ``entry``, by binary search, so that few of them are read."""
        count, place = self._count(shape), np.empty(1, _U32)

        def at(index: int) -> int:
            read(INDEX, index, place)
            return int(place[0])

        if 0 < entry < math.prod(shape):
            return bisect_left(range(count), entry, key=at)
        return count if entry else 0


def _scales(values: Array) -> Array:
    """A scale per row, just large enough that no entry over it reaches 127; 0 for a row of (almost) zeros."""
    rows, width = rows_of(values.shape)
    matrix = values.reshape(rows, width)
    largest: Array = np.maximum(matrix.max(axis=1), -matrix.min(axis=1))
    largest *= np.float32((1 + 2**-20) / _MAX_INT8)
    largest[largest < _MIN_SCALE] = 0
    return largest


def _rows_in(shape: Shape, entries: range) -> range:
    """The rows that contain ``entries``; any piece of a single row is in row 0."""
    rows, width = rows_of(shape)
    return range(1) if rows == 1 else range(entries.start // width, entries.stop // width)


def _random_bits(random: BitGenerator, count: int) -> NDArray[np.uint16]:
    words = random.random_raw(-(-count // 4))
    return words.astype("<u8", copy=False).view("<u2")[:count]
