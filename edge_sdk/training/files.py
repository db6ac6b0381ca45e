"""Tensor files on disk: written atomically, and read as memory maps.

What the device reads again later, a checkpoint or a residual, is sealed: a checksum reveals the damage that its table
does not show, which would be trained on and sent.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge_sdk.disk import disk_errors, durable_file
from edge_sdk.errors import TensorTableError
from edge_sdk.protocol.tensors import Tensors, header_of, read_tensors, write_tensors

_SEAL_BYTES = 4  # CRC-32 of all before
_BLOCK_BYTES = 1 << 20


def write_whole(path: Path, tensors: Mapping[str, NDArray[Any]], *, sealed: bool = False) -> None:
    """Write ``tensors`` to ``path`` in the safetensors format: durably, and completely or not at all.

    A ``sealed`` file, which only :func:`read_sealed` reads, has a checksum at its end. Raises ``DiskFullError`` or
    another ``StorageError``.
    """
    with disk_errors(path), durable_file(path) as file:
        write_tensors(file, tensors)
        if sealed:
            file.write(_seal_of(tensors))


def read_sealed(path: Path) -> tuple[Tensors, mmap.mmap] | None:
    """What :func:`write_whole` sealed, as views of a memory map; ``None`` if it is damaged, or the disk cannot read it.

    The checksum's bytes are read, not mapped: where the disk cannot read a mapped page, the process is killed.
    """
    try:
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            whole = memoryview(pages)[:-_SEAL_BYTES]
            is_sound = _checksum(file, len(whole)) == file.read()
        return (read_tensors(whole), pages) if is_sound else None
    except (OSError, ValueError, TensorTableError):  # an empty file cannot be mapped
        return None


def _seal_of(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    found = zlib.crc32(header_of({name: (array.dtype, array.shape) for name, array in tensors.items()}))
    for array in tensors.values():
        found = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, found)
    return found.to_bytes(_SEAL_BYTES, "little")


def _checksum(file: BinaryIO, size_bytes: int) -> bytes:
    """The checksum of so many bytes of ``file``, from here on."""
    found = 0
    for start in range(0, size_bytes, _BLOCK_BYTES):
        found = zlib.crc32(file.read(min(_BLOCK_BYTES, size_bytes - start)), found)
    return found.to_bytes(_SEAL_BYTES, "little")
