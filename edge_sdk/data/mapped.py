"""Arrays in unlinked temporary files: mapped into memory, so that the system can reclaim their pages at any time."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.disk import disk_errors

_T = TypeVar("_T", bound=np.generic)


def mapped(rows: Iterable[NDArray[_T]], folder: Path) -> NDArray[_T]:
    """``rows``, at least one and all of one shape, as a read-only array (rows, ...) on the disk of ``folder``.

    One row at a time is in memory. The file goes with the array. Raises ``DiskFullError`` or ``StorageError``.
    """
    coming = iter(rows)
    first = next(coming)
    with disk_errors(folder), NamedTemporaryFile(dir=folder, delete=False) as file:
        os.unlink(file.name)  # noqa: PTH108 - at once, so that a crash leaves nothing behind
        for row in itertools.chain([first], coming):
            file.write(row.tobytes())
        file.flush()
        return np.memmap(file, first.dtype, "r").reshape(-1, *first.shape)


def let_go(array: NDArray[np.generic]) -> None:
    """Give back the memory that a mapped ``array`` occupies; what is used again is read from disk again.

    Pages of a mapped file count as resident memory, which the training process limits. Other arrays are left alone.
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def folder_of(array: NDArray[np.generic]) -> Path | None:
    """Where ``array`` was :func:`mapped`; ``None`` where it is in memory."""
    return Path(array.filename).parent if isinstance(array, np.memmap) and array.filename else None
