"""An update of MiniLM's size to the bytes of its file and back to float32, in warm copies of its float32 bytes.

Bytes are written to memory that is there; what comes back goes block by block into one buffer, as aggregation reads it.
The figure is fp32's, which offers ask for where nothing else is said; the others are beside it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from coordinator.config import parse_encoding
from edge_sdk.elastic.slicing import Array
from edge_sdk.protocol.encodings import blocks, encode, reader_of, table_of
from edge_sdk.protocol.messages import Encoding
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from tests.benchmarks._measure import Figure, show, side_by_side, warm_copy
from tests.support.bert import MINILM, weights

BAR = 2.0
_ENCODINGS = ("fp32", "fp16", "int8", "topk:0.1", "topk:0.01")
_REPEATS = 7
_BLOCK = 256 * 1024
_DELTA = 1e-3  # of a weight in a round


def run() -> Figure:
    deltas = {name: _DELTA * values for name, values in weights(MINILM, seed=0).items()}
    size_bytes = sum(values.nbytes for values in deltas.values())
    actions: dict[str, Callable[[], object]] = {"copy": warm_copy(size_bytes)}
    sizes = {}
    for name in _ENCODINGS:
        encoding, file = parse_encoding(name), Memory(2 * size_bytes)
        _write(deltas, encoding, file)
        sizes[name] = file.size_bytes
        actions[f"{name} there"] = _writing(deltas, encoding, file)
        actions[f"{name} back"] = _reading(deltas, encoding, file)
    medians = side_by_side(actions, _REPEATS)
    copies = {name: seconds / medians["copy"] for name, seconds in medians.items()}
    both = {name: copies[f"{name} there"] + copies[f"{name} back"] for name in _ENCODINGS}
    rows = [
        (name, f"{sizes[name] / size_bytes:6.1%}  {copies[f'{name} there']:6.2f}  {copies[f'{name} back']:6.2f}")
        for name in _ENCODINGS
    ]
    show(f"{size_bytes / 1e6:.1f} MB; of these bytes, and copies there and back, medians", rows)
    more = {name: round(both[name], 2) for name in _ENCODINGS[1:]}
    return Figure("encoding", both["fp32"], BAR, "warm copies of an update's float32 bytes", more)


class Memory(io.RawIOBase):
    """A file in the kind of memory that the yardstick copies, touched once."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._bytes = memoryview(np.ones(most_bytes, np.uint8)).cast("B")
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        end = self.size_bytes + len(data)
        self._bytes[self.size_bytes : end] = data
        self.size_bytes = end
        return len(data)

    @property
    def written(self) -> memoryview:
        return self._bytes[: self.size_bytes]


def _writing(deltas: Mapping[str, Array], encoding: Encoding, file: Memory) -> Callable[[], object]:
    return lambda: _write(deltas, encoding, file)


def _write(deltas: Mapping[str, Array], encoding: Encoding, file: Memory) -> None:
    file.size_bytes = 0
    write_tensors(file, encode(deltas, encoding, seed=1))


def _reading(deltas: Mapping[str, Array], encoding: Encoding, file: Memory) -> Callable[[], object]:
    shapes = {name: values.shape for name, values in deltas.items()}

    def read() -> None:
        tensors = read_tensors(file.written, table_of(shapes, encoding))
        for _ in blocks(shapes, encoding, reader_of(tensors), _BLOCK):
            pass

    return read
