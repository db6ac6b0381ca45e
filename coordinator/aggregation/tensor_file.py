"""A tensor file read piece by piece into a buffer of the caller's.

Aggregation reads every update once, a block of rows at a time and side by side with the others. Reading into one buffer
that stays in the processor's cache is faster than a memory map, whose page faults cost more than the copy, and leaves
nothing resident.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sdk.errors import StorageError, TensorTableError
from edge_sdk.protocol.tensors import Table, Tensors, read_tensors, row_starts


class TensorFile:
    """An open file of float32 tensors, checked once; threads may read it at the same time.

    Keeps one file descriptor until it is closed. Raises ``TensorTableError`` where the file does not hold exactly the
    names and shapes of ``expected``, ``StorageError`` where it cannot be opened.
    """

    def __init__(self, path: Path, expected: Table) -> None:
        self._starts = row_starts(memoryview(_map_file(path)), expected)
        self._file = path.open("rb", buffering=0)

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        self._file.close()

    def read(self, name: str, first: int, into: memoryview) -> None:
        """Fill ``into``, of float32, with the values of ``name`` from entry ``first`` on, counted row by row."""
        start = self._starts[name] + first * into.itemsize
        if os.preadv(self._file.fileno(), [into], start) != into.nbytes:
            raise StorageError(f"{self._file.name} was cut short while it was read; its blob must be fetched again")


@contextmanager
def mapped_tensors(path: Path, expected: Table) -> Iterator[Tensors]:
    """The whole file as read-only views of a memory map; none may be used after the block. Raises as above."""
    tensors = read_tensors(memoryview(_map_file(path)), expected)
    try:
        yield tensors
    finally:
        tensors.clear()  # the map goes with its last view


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise TensorTableError(f"{path} is not a tensor file: it is empty") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): fetch the blob again") from error
