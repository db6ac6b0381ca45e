"""Tensor files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_sdk.disk import disk_errors, durable_file
from edge_sdk.protocol.tensors import write_tensors


def write_whole(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write ``tensors`` to ``path`` in the safetensors format, durable.

    Raises ``DiskFullError`` or another ``StorageError``.
    """
    with disk_errors(path), durable_file(path) as file:
        write_tensors(file, tensors)
