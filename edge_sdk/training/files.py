"""Tensor files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_sdk.disk import disk_errors
from edge_sdk.protocol.tensors import write_tensors


def write_whole(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write ``tensors`` to ``path`` in the safetensors format, durable.

    Raises ``DiskFullError`` or another ``StorageError``.
    """
    partial = path.with_name(f"{path.name}.partial")
    with disk_errors(path):
        try:
            with partial.open("wb") as file:
                write_tensors(file, tensors)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)  # half a file is of no use, and holds what a full disk lacks
            raise
