"""What the operating system says about a disk, as errors of the tree."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sdk.errors import DiskFullError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into ``DiskFullError`` or ``StorageError``, naming the file where known, else ``path``."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _FULL:
            raise DiskFullError(f"no space left for {where}: free some, or raise the quota") from error
        raise StorageError(f"{where} cannot be read or written: {error.strerror}") from error
