"""Arrays that lie in a file without a name: what they take of memory, the system can take back at any time."""

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
    """``rows``, at least one and all of one shape, as (rows, ...), read-only; on the disk of ``folder`` while in use.

    One row at a time is in memory. Raises ``DiskFullError`` or ``StorageError``.
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
    """Have the system take back what a mapped ``array`` takes of memory: it is read anew when it is asked for.

    What is mapped counts as this process's while it is there, as that of a limit on resident memory too. An array in
    memory stays as it is.
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def folder_of(array: NDArray[np.generic]) -> Path | None:
    """Where ``array`` was :func:`mapped`; ``None`` where it is in memory."""
    return Path(array.filename).parent if isinstance(array, np.memmap) and array.filename else None
