"""Coverage-weighted averaging: the next global model from a base and updates that each cover a part of it.

For entry j, with m_kj = 1 where update k covers j, weight w_k, floor c and rate η:

    θ_j ← θ_j + η · Σ_k w_k m_kj Δ_kj / max(Σ_k w_k m_kj, c · Σ_k w_k)

Entries that no update covers do not move. (Dividing by the number of updates, as aggregation by slicing in the authors'
code of RaFFM, arXiv 2310.00247, does, shrinks them in every round.) c = 0 is the plain mean over the updates that cover
an entry. A server optimizer may take the place of η.

Parameters are processed one after the other in blocks of rows. All updates of a block are decoded and summed in small
buffers that stay in the processor's cache, so memory does not grow with their number. Threads share the blocks, and
within a block the order is that of the updates' ids, so the result is a function of the set of updates, to the last
bit. The sums are float32: N updates add a relative error of at most N · 2⁻²⁴ of the mean step, and float64 would double
the time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from coordinator.aggregation.matrix import Cell, MatrixRegion, as_matrix, cells, matrix_shape
from coordinator.aggregation.server_optimizer import ServerOptimizer
from coordinator.aggregation.tensor_file import TensorFile
from edge_sdk.elastic.slicing import Array, Region, Slices, shapes_of
from edge_sdk.protocol.messages import FP32, Encoding

_BLOCK = 256 * 1024  # entries, of 1 MiB: smaller blocks pay for more reads, larger ones leave the cache
_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class UpdateSource:
    """One accepted update: a tensor file of deltas in ``encoding``, and the part of each parameter that they change.

    ``weight`` is positive: accepted samples times a staleness factor; it is rounded to float32.
    """

    update_id: str
    weight: float
    slices: Slices
    path: Path
    encoding: Encoding = FP32


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The next global model, and what the server optimizer keeps for the round after it."""

    parameters: dict[str, Array]
    moments: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenUpdate:
    """An update whose file is open."""

    weight: np.float32
    slices: Slices
    file: TensorFile


@contextmanager
def opened(updates: Iterable[UpdateSource]) -> Iterator[list[OpenUpdate]]:
    """All ``updates`` in the order of their ids.

    Raises ``TensorTableError`` where a file does not match its slices, ``StorageError`` where it cannot be read.
    """
    with ExitStack() as files:
        yield [
            OpenUpdate(
                np.float32(update.weight),
                update.slices,
                files.enter_context(closing(TensorFile(update.path, shapes_of(update.slices), update.encoding))),
            )
            for update in sorted(updates, key=lambda update: update.update_id)
        ]


def advance(
    base: Mapping[str, Array],
    updates: Sequence[UpdateSource],
    *,
    floor: float,
    optimizer: ServerOptimizer,
    moments: Mapping[str, Array],
) -> Aggregated:
    """The new global model, in new arrays; ``floor`` is c of the formula above.

    ``moments`` are those that the last round returned, empty at first. Every update's file stays open meanwhile. Raises
    as :func:`opened`.
    """
    with opened(updates) as files:
        least = floor * sum(float(update.weight) for update in files)
        parameters = [
            _Parameter.of(name, values, files, least, optimizer.moments_of(name, values, moments))
            for name, values in base.items()
        ]
        _move(parameters, optimizer)
    kept = {name: moment for parameter in parameters for name, moment in parameter.moments.items()}
    return Aggregated({parameter.name: parameter.result for parameter in parameters}, kept)


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One parameter and the updates that cover it, by region.

    ``least`` is c · Σ w of the formula, the smallest divisor. ``result`` and ``moments`` change in place.
    """

    name: str
    base: Array
    result: Array
    moments: dict[str, Array]
    groups: dict[MatrixRegion, list[OpenUpdate]]
    cells: list[Cell]
    least: float

    @classmethod
    def of(
        cls, name: str, base: Array, updates: Sequence[OpenUpdate], least: float, moments: dict[str, Array]
    ) -> _Parameter:
        """Group the updates by region, since those of one region overlap each block in the same way."""
        by_region: dict[Region, list[OpenUpdate]] = {}
        for update in updates:
            if (region := update.slices.get(name)) is not None:
                by_region.setdefault(region, []).append(update)
        groups: dict[MatrixRegion, list[OpenUpdate]] = {}
        for region, covering in by_region.items():
            groups.setdefault(MatrixRegion.of(region, base.shape), []).extend(covering)
        weights = {region: sum(float(update.weight) for update in covering) for region, covering in groups.items()}
        result = np.empty_like(base) if groups else np.array(base)
        return cls(name, base, result, moments, groups, cells(weights), least)

    def blocks(self) -> Iterator[range]:
        """Ranges of its rows as a matrix, as many as fit the buffers; none if no update covers the parameter."""
        rows, columns = matrix_shape(self.base.shape)
        step = max(1, _BLOCK // max(1, columns))
        if self.groups:
            yield from (range(first, min(first + step, rows)) for first in range(0, rows, step))


def _move(parameters: Sequence[_Parameter], optimizer: ServerOptimizer) -> None:
    """All blocks; no two share an entry, so their order does not matter."""
    size = max([_BLOCK, *(matrix_shape(parameter.base.shape)[1] for parameter in parameters)])
    idle: SimpleQueue[_Sums] = SimpleQueue()
    for _ in range(_THREADS):
        idle.put(_Sums(size, optimizer))

    def move(parameter: _Parameter, rows: range) -> None:
        sums = idle.get()
        try:
            sums.move(parameter, rows)
        finally:
            idle.put(sums)

    with ThreadPoolExecutor(_THREADS) as pool:
        blocks = [(parameter, rows) for parameter in parameters for rows in parameter.blocks()]
        for _ in pool.map(move, *zip(*blocks, strict=True)) if blocks else ():
            pass


@dataclass(frozen=True, slots=True)
class _Window:
    """The overlap of one region with one block; its updates are read from their entry ``first`` on.

    They are summed in ``total``, packed, with ``values`` as a buffer of the same size, and added to the block once.
    ``pieces`` are pairs of views: a part of the block, and the part of ``total`` to add there.
    """

    first: int
    total: Array
    values: Array
    pieces: list[tuple[Array, Array]]

    def add(self, updates: Sequence[OpenUpdate], name: str) -> None:
        """Add the deltas of the parameter ``name`` of all ``updates``, times their negated weights."""
        self._read(updates[0], name, self.total)
        for update in updates[1:]:
            self._read(update, name, self.values)
            np.add(self.total, self.values, out=self.total)
        for target, total in self.pieces:
            np.add(target, total, out=target)

    def _read(self, update: OpenUpdate, name: str, into: Array) -> None:
        update.file.read(name, self.first, into)
        np.multiply(into, -update.weight, out=into)


class _Sums:
    """The three buffers in which one thread sums block after block: ``size`` entries each."""

    def __init__(self, size: int, optimizer: ServerOptimizer) -> None:
        self._sums = np.empty(size, np.float32)
        self._total = np.empty(size, np.float32)
        self._values = np.empty(size, np.float32)
        self._optimizer = optimizer

    def move(self, parameter: _Parameter, rows: range) -> None:
        """Compute the next values of some rows of a parameter.

        Sums of negated deltas are subtracted, because x - 0 is x for every x, while -0 + 0 is +0.
        """
        base, result, *moments = (
            as_matrix(array)[rows.start : rows.stop]
            for array in (parameter.base, parameter.result, *parameter.moments.values())
        )
        block = self._sums[: base.size].reshape(base.shape)
        block.fill(0)
        for region, updates in parameter.groups.items():
            window = self._window(region, rows, block)
            if window.pieces:
                window.add(updates, parameter.name)
        self._descend(block, parameter, rows.start, moments)
        np.subtract(base, block, out=result)

    def _window(self, region: MatrixRegion, rows: range, block: Array) -> _Window:
        before, width = region.rows_before(rows.start), region.width
        count = region.rows_before(rows.stop) - before
        total, values = self._total[: count * width], self._values[: count * width]
        matrix = total.reshape(count, width)
        pieces = [(block[whole], matrix[part]) for whole, part in region.rectangles(rows)]
        return _Window(before * width, total, values, pieces)

    def _descend(self, block: Array, parameter: _Parameter, first: int, moments: Sequence[Array]) -> None:
        """Turn the sums in ``block``, whose first row is ``first``, into steps, cell by cell."""
        for cell in parameter.cells:
            gradient = cell.within(block, first)
            if gradient.size:
                gradient *= np.float32(1 / max(cell.weight, parameter.least))
                self._optimizer.descend(gradient, [cell.within(moment, first) for moment in moments])
