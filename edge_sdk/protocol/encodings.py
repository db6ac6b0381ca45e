"""How the deltas of an update become the tensors of its file, and are decoded again.

    fp32   F32, unchanged
    fp16   F16, rounded to nearest; values beyond its range become the largest, never infinite
    int8   I8 times a float32 scale: one per row (the first axis of two or more), or one for a whole vector. Rounded up
           or down at random, so that the mean is right (QSGD, arXiv 1610.02132, section 3.1)
    topk   the entries with the largest magnitudes, a fixed share of each parameter: F16, and their U32 places in C
           order, ascending; all others are zero (Deep Gradient Compression, arXiv 1712.01887, without its momentum)

A parameter becomes a tensor of its own name, and for int8 and topk a second one, ``name:scale`` or ``name:index``. The
whole table follows from the shapes, so a reader knows it before it parses a byte. Wider types come first in the file,
which keeps every tensor aligned. A device may keep what an encoding loses: see :mod:`edge_sdk.training.feedback`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.slicing import Array, Shapes
from edge_sdk.protocol.codecs import BLOCK, Codec, Fp16, Fp32, Int8, Parts, TopK, row_blocks, rows_of
from edge_sdk.protocol.messages import Encoding, EncodingKind
from edge_sdk.protocol.tensors import Spec, Tensors

ReadTensor = Callable[[str, str, int, NDArray[Any]], object]
"""``read(name, part, first, into)`` fills the flat array ``into`` with a part's entries, from entry ``first`` on."""


def codec_of(encoding: Encoding) -> Codec:
    """The codec that encodes and decodes one parameter."""
    codecs: dict[EncodingKind, Codec] = {
        EncodingKind.FP32: Fp32(),
        EncodingKind.FP16: Fp16(),
        EncodingKind.INT8: Int8(),
        EncodingKind.TOPK: TopK(encoding.share),
    }
    return codecs[encoding.kind]


def table_of(shapes: Shapes, encoding: Encoding) -> dict[str, Spec]:
    """The exact table of an update of parameters with ``shapes``, in the order of the file."""
    codec = codec_of(encoding)
    parts = {name + part: spec for name, shape in shapes.items() for part, spec in codec.table(shape).items()}
    return dict(sorted(parts.items(), key=lambda item: -item[1][0].itemsize))


def bytes_per_entry(encoding: Encoding) -> float:
    """What an update takes for each of a long row's entries."""
    entries = 1 << 20
    table = codec_of(encoding).table((1, entries))
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in table.values()) / entries


def encode(deltas: Mapping[str, Array], encoding: Encoding, seed: int) -> Tensors:
    """The tensors of an update, in the order of the file; in fp32 these are ``deltas`` themselves.

    The same deltas and the same ``seed``, which decides the rounding, give the same bytes.
    """
    codec, parts = codec_of(encoding), Parts()
    for name, values in deltas.items():
        seeds = seed, zlib.crc32(name.encode())
        parts |= {name + part: array for part, array in codec.encode(values, seeds).items()}
    return {name: parts[name] for name in table_of(_shapes(deltas), encoding)}


def decode(tensors: Tensors, shapes: Shapes, encoding: Encoding) -> dict[str, Array]:
    """The deltas that an update's ``tensors`` encode, in new arrays."""
    deltas = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for name, block, values in blocks(shapes, encoding, reader_of(tensors)):
        deltas[name].reshape(-1)[block.start : block.stop] = values
    return deltas


def take_away(deltas: Mapping[str, Array], tensors: Tensors, encoding: Encoding) -> None:
    """Subtract from ``deltas``, in place, what ``tensors`` encode: what is left is the encoding's loss."""
    for name, block, said in blocks(_shapes(deltas), encoding, reader_of(tensors)):
        part = deltas[name].reshape(-1)[block.start : block.stop]
        np.subtract(part, said, out=part)


def blocks(
    shapes: Shapes, encoding: Encoding, read: ReadTensor, most: int = BLOCK
) -> Iterator[tuple[str, range, Array]]:
    """All deltas in blocks of whole rows of about ``most`` entries: name, range of entries in C order, and values.

    The values are valid until the next block.
    """
    codec, widest = codec_of(encoding), max((rows_of(shape)[1] for shape in shapes.values()), default=0)
    buffer = np.empty(max(most, widest), np.float32)
    for name, shape in shapes.items():
        for block in row_blocks(shape, most):
            codec.decode(shape, block.start, buffer[: len(block)], partial(read, name))
            yield name, block, buffer[: len(block)]


def reader_of(tensors: Tensors) -> ReadTensor:
    """A reader of ``tensors`` in memory."""

    def read(name: str, part: str, first: int, into: NDArray[np.generic]) -> None:
        np.copyto(into, tensors[name + part].reshape(-1)[first : first + into.size])

    return read


def _shapes(deltas: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in deltas.items()}
