"""Files on disk: the system's errors as errors of the tree, writes that survive power loss, locked folders, limits."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edge_sdk.errors import DiskFullError, StateInUseError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_MAX_FILES = 65536


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
def durable_file(path: Path, *, secret: bool = False) -> Iterator[BinaryIO]:
    """A file to write that replaces ``path`` at the end: after any crash, ``path`` is the old file or the new one.

    If anything raises, the partial file is removed: it is useless, and takes room that a full disk lacks. A ``secret``
    file is readable by its owner only, from its first byte on.
    """
    partial = partial_of(path)
    try:
        if secret:
            partial.unlink(missing_ok=True)
        with open(partial, "wb", opener=_owner_only if secret else None) as file:
            yield file
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def partial_of(path: Path) -> Path:
    """Where :func:`durable_file` writes what is to replace ``path``; a process that is killed leaves it there."""
    return path.with_name(f"{path.name}.partial")


def write_durably(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Put ``data`` at ``path``, as :func:`durable_file` does. Raises ``OSError``."""
    with durable_file(path, secret=secret) as file:
        file.write(data)


def create_durably(path: Path, secret: bytes) -> None:
    """Write ``secret`` to ``path``, readable by its owner only: completely or not at all. An existing file stays.

    Raises ``OSError``.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    draft.unlink(missing_ok=True)
    try:
        with open(draft, "wb", opener=_owner_only) as file:
            file.write(secret)
        sync(draft)
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def sole_user(lock: Path, who: str) -> AbstractContextManager[None]:
    """Hold the lock file ``lock`` exclusively, against other processes and other parts of this one.

    Raises ``StateInUseError`` if it is held already, naming its folder and ``who`` uses it (such as "agent"), and
    ``StorageError`` if the disk refuses.
    """
    return _holding(lock, who, fcntl.LOCK_EX | fcntl.LOCK_NB)


def one_of_users(lock: Path, who: str, *, waits: bool = False) -> AbstractContextManager[None]:
    """As :func:`sole_user`, but beside others that hold it so too. With ``waits``, a sole user is waited for."""
    return _holding(lock, who, fcntl.LOCK_SH | (0 if waits else fcntl.LOCK_NB))


@contextmanager
def _holding(lock: Path, who: str, kind: int) -> Iterator[None]:
    with disk_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    process = os.getpid()
    try:
        with disk_errors(lock):
            _lock(descriptor, lock.parent, who, kind)
        yield
    finally:
        if os.getpid() == process:  # a forked one that ends has the descriptor too, and would let go of both
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough while a forked one lives
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, who: str, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError as error:
        raise StateInUseError(f"state folder {folder} is in use by another {who}: stop it first") from error


def raise_file_limit() -> None:
    """Raise this process's limit of open files as far as allowed, to at most 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive power loss. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)
