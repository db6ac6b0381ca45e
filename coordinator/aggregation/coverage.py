"""Coverage-weighted averaging: the next global model from a base and updates that each cover a part of it.

For entry j, with m_kj = 1 where update k covers j, weight w_k, floor c and rate η:

    θ_j ← θ_j + η · Σ_k w_k m_kj Δ_kj / max(Σ_k w_k m_kj, c · Σ_k w_k)

Entries that nobody covered do not move: dividing by the number of updates instead shrinks them every round, which is
what aggregation by slicing in RaFFM (arXiv 2310.00247) did. c = 0 is the plain mean over those who cover an entry.

Parameter by parameter and block of rows by block of rows, all updates are summed in one small buffer that stays in the
processor's cache, so memory does not grow with their number. They are summed entry by entry in the order of their ids,
so the result is a function of the set, to the last bit. The sums are float32: N updates add a relative error of at most
N · 2⁻²⁴ of the mean step, and float64 doubles the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from coordinator.aggregation.tensor_file import TensorFile
from edge_sdk.elastic.slicing import Array, Slices, shapes_of

_BLOCK = 128 * 1024  # entries: with the rows just read this takes 1 MiB


@dataclass(frozen=True, slots=True)
class UpdateSource:
    """One accepted update: a tensor file of deltas, and which part of each parameter they belong to.

    ``weight`` is positive: accepted samples times staleness factor; it is rounded to float32.
    """

    update_id: str
    weight: float
    slices: Slices
    path: Path


def aggregate(
    base: Mapping[str, Array], updates: Sequence[UpdateSource], *, floor: float, rate: float = 1.0
) -> dict[str, Array]:
    """The new global model, in fresh arrays; ``floor`` is c and ``rate`` η of the formula above.

    Every file is open meanwhile. Raises ``TensorTableError`` where one does not match its slices, ``StorageError``
    where one cannot be read.
    """
    ordered = sorted(updates, key=lambda update: update.update_id)
    least = floor * sum(_weight(update) for update in ordered)
    sums = _Sums(max([_BLOCK, *(values.shape[-1] for values in base.values())]))
    with ExitStack() as files:
        opened = [(update, files.enter_context(closing(_open(update)))) for update in ordered]
        result = {}
        for name, values in base.items():
            covers = [_Cover.of(update, file, name) for update, file in opened if name in update.slices]
            matrix = values if values.ndim == 2 else values.reshape(1, -1)
            result[name] = sums.move(matrix, covers, list(_cells(covers, least, rate))).reshape(values.shape)
    return result


@dataclass(frozen=True, slots=True)
class _Cover:
    """One update's part of one parameter, seen as a matrix: it lies at ``rows`` and ``columns`` of the whole."""

    file: TensorFile
    name: str
    weight: float
    factor: np.float32
    rows: slice
    columns: slice

    @classmethod
    def of(cls, update: UpdateSource, file: TensorFile, name: str) -> _Cover:
        rows, columns = (slice(0, 1), *update.slices[name])[-2:]
        return cls(file, name, _weight(update), np.float32(-_weight(update)), rows, columns)

    def add_to(self, block: Array, first: int, scratch: Array) -> None:
        """Add what this covers of the rows from ``first`` on, times minus the weight."""
        low, high = max(first, self.rows.start), min(first + len(block), self.rows.stop)
        if low >= high:
            return
        width = self.columns.stop - self.columns.start
        values = scratch[: (high - low) * width]
        self.file.read(self.name, (low - self.rows.start) * width, values)
        np.multiply(values, self.factor, out=values)
        target = block[low - first : high - first, self.columns]
        target += values.reshape(high - low, width)


class _Sums:
    """The two buffers in which every block of every parameter is summed: ``size`` entries each."""

    def __init__(self, size: int) -> None:
        self._sums = np.empty(size, np.float32)
        self._scratch = np.empty(size, np.float32)

    def move(self, base: Array, covers: Sequence[_Cover], cells: Sequence[_Cell]) -> Array:
        """One parameter's next values, shape (rows, columns)."""
        result = np.empty_like(base)
        step = max(1, len(self._sums) // max(1, base.shape[1]))
        for first in range(0, len(base), step):
            self._move_block(base[first : first + step], covers, cells, first, result[first : first + step])
        return result

    def _move_block(
        self, base: Array, covers: Sequence[_Cover], cells: Sequence[_Cell], first: int, result: Array
    ) -> None:
        """Sums of negated deltas are subtracted, since x - 0 is x even where x is -0, which x + 0 is not."""
        block = self._sums[: base.size].reshape(base.shape)
        block.fill(0)
        for cover in covers:
            cover.add_to(block, first, self._scratch)
        for cell in cells:
            cell.scale(block, first)
        np.subtract(base, block, out=result)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A rectangle of a parameter that the same updates cover, and what their sum is multiplied by."""

    low: int
    high: int
    columns: slice
    factor: np.float32

    def scale(self, block: Array, first: int) -> None:
        """Turn the sums of the rows from ``first`` on into steps."""
        low, high = max(self.low - first, 0), min(self.high - first, len(block))
        if low < high:
            target = block[low:high, self.columns]
            target *= self.factor


def _cells(covers: Sequence[_Cover], least: float, rate: float) -> Iterator[_Cell]:
    """The parameter cut along every border of a slice: coverage from the bounds alone."""
    for low, high in _intervals([cover.rows for cover in covers]):
        for left, right in _intervals([cover.columns for cover in covers]):
            coverage = sum(
                cover.weight
                for cover in covers
                if _contains(cover.rows, low, high) and _contains(cover.columns, left, right)
            )
            if coverage > 0:
                yield _Cell(low, high, slice(left, right), np.float32(rate / max(coverage, least)))


def _intervals(ranges: Sequence[slice]) -> list[tuple[int, int]]:
    borders = sorted({border for axis in ranges for border in (axis.start, axis.stop)})
    return list(pairwise(borders))


def _contains(axis: slice, low: int, high: int) -> bool:
    return bool(axis.start <= low and high <= axis.stop)


def _open(update: UpdateSource) -> TensorFile:
    return TensorFile(update.path, shapes_of(update.slices))


def _weight(update: UpdateSource) -> float:
    return float(np.float32(update.weight))
