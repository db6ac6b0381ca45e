"""Tables of frozen embeddings: each batch reads the rows that it looks up; the others stay in the file.

A batch of 512 tokens looks up about 300 of the 30,522 rows that MiniLM has. Reading them by system calls takes 0.3 ms
a step. In a mapped table every row costs a page fault and a page: 2.1 ms a step, and 25 ms in each of the first three
steps, which wait for the disk.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.slicing import Array
from edge_sdk.errors import TrainingError
from edge_sdk.protocol.graphs import row_inputs
from edge_sdk.protocol.tensors import Spec, read_tensors, row_starts

Ids = NDArray[np.int64]


class Lookup:
    """The tensors in ``file`` (mapped in ``pages``) in which a graph with these ``inputs`` only looks up rows."""

    def __init__(self, file: Path, pages: memoryview, inputs: Iterable[str]) -> None:
        specs = {name: (values.dtype, values.shape) for name, values in read_tensors(pages).items()}
        starts = row_starts(pages, specs)
        self._rows = [row for row in row_inputs(inputs).values() if _is_table(specs.get(row.table))]
        self._tables = {row.table: (starts[row.table], *specs[row.table][1]) for row in self._rows}
        self._file = os.open(file, os.O_RDONLY | os.O_CLOEXEC)  # kept open: the file may be unlinked meanwhile
        weakref.finalize(self, os.close, self._file)

    @property
    def tables(self) -> AbstractSet[str]:
        """The names of the tables."""
        return self._tables.keys()

    @property
    def places(self) -> AbstractSet[str]:
        """The inputs that hold, for each id, the index of its row among the rows that are fed."""
        return {row.name for row in self._rows}

    def feeds(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """What to feed besides the batch's ``inputs``: of each table the rows that they look up, and their indices.

        Raises ``TrainingError`` if a table has no row for an id, ``OSError`` if the file cannot be read.
        """
        fed: dict[str, NDArray[np.generic]] = {}
        for table in self._tables:
            rows = [row for row in self._rows if row.table == table]
            fed[table], places = self._take(table, [inputs[row.ids] for row in rows])
            fed |= {row.name: where for row, where in zip(rows, places, strict=True)}
        return fed

    def _take(self, table: str, ids: Sequence[NDArray[np.generic]]) -> tuple[Array, list[Ids]]:
        start, count, width = self._tables[table]
        found, places = np.unique(np.concatenate([each.reshape(-1) for each in ids]), return_inverse=True)
        beyond = found[(found < 0) | (found >= count)]
        if beyond.size:
            raise TrainingError(
                f"a text has token {beyond[0]}, {table} has {count} rows: the tokenizer is another model's"
            )
        row_bytes = width * np.dtype(np.float32).itemsize
        read = b"".join([os.pread(self._file, row_bytes, at) for at in (start + found * row_bytes).tolist()])
        if len(read) != len(found) * row_bytes:
            raise TrainingError(f"the file of {table} was cut short while it was read")
        rows = np.frombuffer(read, dtype=np.float32).reshape(-1, width)
        ends = np.cumsum([each.size for each in ids])[:-1]
        parts = np.split(places.reshape(-1).astype(np.int64, copy=False), ends)
        return rows, [part.reshape(each.shape) for part, each in zip(parts, ids, strict=True)]


def _is_table(spec: Spec | None) -> bool:
    return spec is not None and spec[0] == np.float32 and len(spec[1]) == 2
