"""What the operating system says about a disk, as errors of the tree; and how a file is made to outlive power loss."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of ``path`` at the end: after any crash that is the old one or the new.

    Where something raises, nothing is left of it: half a file is of no use, and holds what a full disk lacks.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, as :func:`durable_file` does. Raises ``OSError``."""
    with durable_file(path) as file:
        file.write(data)


def sync(path: Path) -> None:
    """Make what was written to a file, or which names a folder holds, outlive power loss. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
