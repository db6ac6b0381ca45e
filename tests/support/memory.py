"""A folder in memory, where there is one: for tests that are not about what a disk keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is read there that others wrote


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Empty, and gone afterwards."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        yield Path(folder)
