"""Regions of parameters with any number of axes, as regions of a matrix: the first axis by all others, in C order.

Aggregation processes parameters in blocks of such rows. A vector is a column, a scalar a single entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

from edge_sdk.elastic.slicing import Array, Region

Ranges = tuple[range, ...]


@dataclass(frozen=True, slots=True)
class MatrixRegion:
    """Disjoint ascending ranges of rows and of columns; the region consists of all their rectangles."""

    rows: Ranges
    columns: Ranges

    @classmethod
    def of(cls, region: Region, shape: tuple[int, ...]) -> MatrixRegion:
        """``region`` of a parameter of ``shape``."""
        rows, *others = region.axes or ((range(1),),)
        columns: Ranges = (range(1),)
        size = 1
        for ranges, length in zip(reversed(others), reversed(shape), strict=False):
            columns = _flattened(ranges, columns, size)
            size *= length
        return cls(rows, columns)

    @property
    def width(self) -> int:
        """Entries of a row."""
        return sum(map(len, self.columns))

    def rows_before(self, first: int) -> int:
        """How many rows of the region lie before ``first``."""
        return sum(len(range(rows.start, min(rows.stop, first))) for rows in self.rows)

    def rectangles(self, rows: range) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """The rectangles within ``rows``: where each lies in these rows of the matrix, and of the packed region."""
        everything = range(max(columns.stop for columns in self.columns))
        for pieces in product(_overlaps(self.rows, rows), _overlaps(self.columns, everything)):
            (whole_rows, rows_within), (whole_columns, columns_within) = pieces
            yield (whole_rows, whole_columns), (rows_within, columns_within)


@dataclass(frozen=True, slots=True)
class Cell:
    """A rectangle that the same regions cover, and the sum of their weights."""

    rows: range
    columns: range
    weight: float

    def within(self, matrix: Array, first: int) -> Array:
        """Its entries in ``matrix``, whose first row is ``first``; an empty view if there are none."""
        low, high = (max(0, row - first) for row in (self.rows.start, self.rows.stop))
        return matrix[low:high, self.columns.start : self.columns.stop]


def cells(weights: Mapping[MatrixRegion, float]) -> list[Cell]:
    """The union of the regions, cut along every border into cells, from the regions' bounds alone."""
    rows = _intervals({rows for region in weights for rows in region.rows})
    columns = _intervals({columns for region in weights for columns in region.columns})
    cut = (
        Cell(low, left, sum(weight for region, weight in weights.items() if _covers(region, low, left)))
        for low, left in product(rows, columns)
    )
    return [cell for cell in cut if cell.weight > 0]


def as_matrix(values: Array) -> Array:
    """A view of contiguous ``values``, shape (rows, columns)."""
    return values.reshape(matrix_shape(values.shape))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The rows and the columns of a parameter of ``shape``."""
    return (shape or (1,))[0], math.prod(shape[1:])


def _flattened(outer: Ranges, inner: Ranges, size: int) -> Ranges:
    """The entries of two axes in one, where the inner one is ``size`` long."""
    if inner == (range(size),):
        return tuple(range(ranges.start * size, ranges.stop * size) for ranges in outer)
    starts = (index * size for ranges in outer for index in ranges)
    return tuple(range(start + ranges.start, start + ranges.stop) for start in starts for ranges in inner)


def _overlaps(ranges: Ranges, window: range) -> Iterator[tuple[slice, slice]]:
    """Where ``ranges`` meet ``window``: counted from its start, and packed."""
    place = 0
    for part in ranges:
        low, high = max(part.start, window.start), min(part.stop, window.stop)
        if low < high:
            yield slice(low - window.start, high - window.start), slice(place, place + high - low)
            place += high - low


def _intervals(ranges: set[range]) -> list[range]:
    borders = sorted({border for part in ranges for border in (part.start, part.stop)})
    return [range(low, high) for low, high in pairwise(borders)]


def _covers(region: MatrixRegion, rows: range, columns: range) -> bool:
    return any(rows.start in part for part in region.rows) and any(columns.start in part for part in region.columns)
