"""An update of MiniLM's size to the bytes of its file and back to float32, in warm copies of its float32 bytes.

Bytes are written to memory that is there; what comes back goes block by block into one buffer, as aggregation reads it.
The figure is fp32's, which offers ask for where nothing else is said; the others are beside it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

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
_BLOCK = 256 * 1024  # aggregation's
_DELTA = 1e-3  # of a weight in a round


def run() -> Figure:
    deltas = {name: _DELTA * values for name, values in weights(MINILM, seed=0).items()}
    size_bytes = sum(values.nbytes for values in deltas.values())
    actions: dict[str, Callable[[], object]] = {"copy": warm_copy(size_bytes)}
    sizes = {}
    for name in _ENCODINGS:
        encoding, file = parse_encoding(name), io.BytesIO()
        _write(deltas, encoding, file)
        sizes[name] = file.tell()
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


def _writing(deltas: Mapping[str, Array], encoding: Encoding, file: io.BytesIO) -> Callable[[], object]:
    return lambda: _write(deltas, encoding, file)


def _write(deltas: Mapping[str, Array], encoding: Encoding, file: io.BytesIO) -> None:
    file.seek(0)
    write_tensors(file, encode(deltas, encoding, seed=1))


def _reading(deltas: Mapping[str, Array], encoding: Encoding, file: io.BytesIO) -> Callable[[], object]:
    shapes = {name: values.shape for name, values in deltas.items()}

    def read() -> None:
        tensors = read_tensors(file.getbuffer(), table_of(shapes, encoding))
        for _ in blocks(shapes, encoding, reader_of(tensors), _BLOCK):
            pass

    return read
