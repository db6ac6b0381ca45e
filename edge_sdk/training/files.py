"""Tensor files on disk: written atomically, and read as memory maps."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_sdk.disk import disk_errors, durable_file
from edge_sdk.errors import TensorTableError
from edge_sdk.protocol.tensors import Tensors, read_tensors, write_tensors


def write_whole(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write ``tensors`` to ``path`` in the safetensors format: durably, and completely or not at all.

    Raises ``DiskFullError`` or another ``StorageError``.
    """
    with disk_errors(path), durable_file(path) as file:
        write_tensors(file, tensors)


def read_whole(path: Path) -> tuple[Tensors, mmap.mmap] | None:
    """What :func:`write_whole` wrote, as views of a memory map; ``None`` if the file is damaged.

    Raises ``StorageError`` if it cannot be read.
    """
    try:
        with disk_errors(path), path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return read_tensors(memoryview(pages)), pages
    except (ValueError, TensorTableError):  # an empty file cannot be mapped
        return None
