"""Reads an update's file block by block into the caller's buffer, whatever its encoding.

Aggregation reads every update once, in blocks of rows that alternate with those of the others. Reading into a buffer
that stays in the processor's cache is faster than a memory map, whose page faults cost more than the copy, and leaves
nothing resident.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_sdk.elastic.slicing import Array, Shapes
from edge_sdk.errors import StorageError, TensorTableError
from edge_sdk.protocol.codecs import Flaw, rows_of
from edge_sdk.protocol.encodings import blocks, codec_of, table_of
from edge_sdk.protocol.messages import FP32, Encoding
from edge_sdk.protocol.tensors import row_starts

_BLOCK = 256 * 1024  # entries


class TensorFile:
    """An open file of deltas of ``shapes`` in ``encoding``, checked once; threads may read it at the same time.

    Keeps one file descriptor until it is closed. Raises ``TensorTableError`` if the file's table is not exactly that of
    ``shapes`` and ``encoding``, ``StorageError`` if it cannot be opened.
    """

    def __init__(self, path: Path, shapes: Shapes, encoding: Encoding = FP32) -> None:
        self._shapes, self._encoding, self._codec = shapes, encoding, codec_of(encoding)
        self._starts = row_starts(memoryview(_map_file(path)), table_of(shapes, encoding))
        self._file = path.open("rb", buffering=0)

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        self._file.close()

    def read(self, name: str, first: int, into: Array) -> None:
        """Fill the flat ``into`` with values of ``name`` from entry ``first`` on: whole rows, or part of a vector."""
        self._codec.decode(self._shapes[name], first, into, partial(self._read, name))

    def blocks(self) -> Iterator[tuple[str, Array]]:
        """All values in blocks (rows, entries), each with its parameter's name; valid until the next block."""
        for name, block, values in blocks(self._shapes, self._encoding, self._read, _BLOCK):
            width = min(len(block), rows_of(self._shapes[name])[1])
            yield name, values.reshape(-1, width)

    def flaw(self) -> tuple[str, Flaw, str] | None:
        """The first parameter that cannot be decoded, and why, also in words; ``None`` if there is none."""
        flaws = (
            (name, *flaw)
            for name, shape in self._shapes.items()
            if (flaw := self._codec.flaw(shape, partial(self._read, name))) is not None
        )
        return next(flaws, None)

    def _read(self, name: str, part: str, first: int, into: NDArray[Any]) -> None:
        start = self._starts[name + part] + first * into.itemsize
        if os.preadv(self._file.fileno(), [into.data], start) != into.nbytes:
            raise StorageError(f"{self._file.name} was cut short while it was read; its blob must be fetched again")


def _map_file(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file cannot be mapped
        raise TensorTableError(f"{path} is not a tensor file: it is empty") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): fetch the blob again") from error
