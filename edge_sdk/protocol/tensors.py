"""Arrays to bytes and back, in the safetensors format: an 8-byte length, a JSON header, raw little-endian data.

Reading is zero-copy: arrays are read-only views of the buffer (a memory map stays a memory map). A reader that knows
what to expect passes a table of names, types and shapes, and anything else is refused before an array is made. Source
of the format: the README of huggingface/safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_sdk.decoding import UNDECODABLE, brief
from edge_sdk.errors import TensorTableError

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 10_000
MAX_AXES = 8
_MAX_ENTRIES = 1 << 53
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Tensors = dict[str, NDArray[Any]]
Spec = tuple[np.dtype[Any], tuple[int, ...]]
"""Type and shape of a tensor."""
Table = Mapping[str, Spec]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_header_decoder = msgspec.json.Decoder(dict[str, _Entry])


def size_of(table: Table) -> int:
    """The bytes of data in a file with this table, without the header."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in table.values())


def header_of(table: Table) -> bytes:
    """The bytes before the data: length and JSON, padded with spaces so that the data start 8-byte aligned."""
    entries, offset = {}, 0
    for name, (dtype, shape) in table.items():
        size = dtype.itemsize * math.prod(shape)
        entries[name] = _Entry(_NAMES[dtype], shape, (offset, offset + size))
        offset += size
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(file: BinaryIO, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write ``tensors`` to ``file`` one after the other, without copying contiguous arrays."""
    file.write(header_of({name: (array.dtype, array.shape) for name, array in tensors.items()}))
    file.writelines(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in tensors.values())


def read_tensors(buffer: bytes | memoryview, expected: Table | None = None) -> Tensors:
    """Views into ``buffer`` by name, of the types float32, float16, int8, uint32 or int64.

    Raises ``TensorTableError`` if the header is malformed, if its ranges do not tile the buffer, or if there is an
    ``expected`` table and the file differs from it.
    """
    view = memoryview(buffer).cast("B")
    entries, start = _checked_header(view, expected)
    return {name: _array(view, start, entry) for name, entry in entries.items()}


def row_starts(buffer: bytes | memoryview, expected: Table) -> dict[str, int]:
    """The offset of each tensor's data in ``buffer``, in bytes. Checks the header as :func:`read_tensors`."""
    entries, start = _checked_header(memoryview(buffer).cast("B"), expected)
    return {name: start + entries[name].data_offsets[0] for name in expected}


def _checked_header(view: memoryview, expected: Table | None) -> tuple[dict[str, _Entry], int]:
    entries, start = _read_header(view)
    if expected is not None:
        _compare(entries, expected)
    _check_tiling(entries, len(view) - start)
    return entries, start


def _read_header(view: memoryview) -> tuple[dict[str, _Entry], int]:
    length = int.from_bytes(view[:8], "little") if len(view) >= 8 else -1
    if not 0 <= length <= min(MAX_HEADER_BYTES, len(view) - 8):
        msg = f"tensor header of {length} bytes in a file of {len(view)}: not a tensor file, or cut short"
        raise TensorTableError(msg)
    try:
        entries = _header_decoder.decode(view[8 : 8 + length])
    except UNDECODABLE as error:
        msg = f"tensor header cannot be read: {brief(error)}"
        raise TensorTableError(msg) from error
    if len(entries) > MAX_TENSORS:
        msg = f"tensor file has {len(entries)} tensors; the limit is {MAX_TENSORS}"
        raise TensorTableError(msg)
    return entries, 8 + length


def _check_tiling(entries: Mapping[str, _Entry], size_bytes: int) -> None:
    """Check that every range has its array's size, and that together they cover the data without gap or overlap."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in _DTYPES or not _is_shape(entry.shape):
            msg = f"tensor {name[:200]!r} has type {entry.dtype[:20]!r} and shape {entry.shape[:8]}"
            raise TensorTableError(msg)
        size = _DTYPES[entry.dtype].itemsize * math.prod(entry.shape)
        if entry.data_offsets != (end, end + size):
            msg = f"tensor {name[:200]!r} lies at {entry.data_offsets}, expected {(end, end + size)}"
            raise TensorTableError(msg)
        end += size
    if end != size_bytes:
        msg = f"tensors take {end} bytes, the file has {size_bytes}"
        raise TensorTableError(msg)


def _is_shape(shape: tuple[int, ...]) -> bool:
    """Whether NumPy can make an array of this shape; beside an axis of 0, absurd lengths would take no bytes."""
    return len(shape) <= MAX_AXES and min(shape, default=0) >= 0 and math.prod(max(a, 1) for a in shape) < _MAX_ENTRIES


def _compare(entries: Mapping[str, _Entry], expected: Table) -> None:
    missing, extra = sorted(expected.keys() - entries.keys()), sorted(entries.keys() - expected.keys())
    if missing or extra:
        unasked = [name[:80] for name in extra[:2]]
        msg = f"{len(missing)} tensors missing ({missing[:2]}), {len(extra)} not asked for ({unasked})"
        raise TensorTableError(msg)
    for name, (dtype, shape) in expected.items():
        entry, kind = entries[name], _NAMES[dtype]
        if entry.dtype != kind or entry.shape != tuple(shape):
            msg = f"tensor {name!r} is {entry.dtype[:20]!r} {entry.shape[:8]}, expected {kind} {tuple(shape)}"
            raise TensorTableError(msg)


def _array(view: memoryview, start: int, entry: _Entry) -> NDArray[Any]:
    array: NDArray[Any] = np.ndarray(entry.shape, _DTYPES[entry.dtype], view, start + entry.data_offsets[0])
    array.flags.writeable = False
    return array
