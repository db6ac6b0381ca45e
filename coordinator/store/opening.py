"""Opens the store of a state folder, moves it to another database, and keeps a folder to one coordinator.

coordinator.sqlite   the store, unless there is a store.url
store.url            the address of the database that is the store instead
serving.lock         locked by the coordinator that serves this folder
store.lock           locked by every process that keeps the store open to serve others, and by a move of the store
"""

from __future__ import annotations

import fcntl
import os
from contextlib import AbstractContextManager, closing
from pathlib import Path

from coordinator.store.backends import absolute, is_in_memory
from coordinator.store.database import Store
from edge_sdk import disk
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import ConfigurationError

SQLITE_FILE = "coordinator.sqlite"
ADDRESS_FILE = "store.url"
_LOCK = "serving.lock"
_STORE_LOCK = "store.lock"


def is_new(state_dir: Path) -> bool:
    """Whether no store was ever opened in ``state_dir``."""
    return not any((state_dir / name).exists() for name in (SQLITE_FILE, ADDRESS_FILE))


def open_store(state_dir: Path, patience_s: float = 0.0) -> Store:
    """Open the store of ``state_dir``, creating it if there is none. Raises ``StorageError`` if it cannot be opened.

    A server that is away is waited for, now and later, as :class:`Store` does.
    """
    with disk_errors(state_dir):
        state_dir.mkdir(parents=True, exist_ok=True)
        return Store(_address(state_dir), patience_s=patience_s)


def look_into(state_dir: Path) -> Store:
    """Open the store of ``state_dir`` for reading, without upgrading it.

    Raises ``ConfigurationError`` if there is none, ``StorageError`` if it cannot be opened.
    """
    if is_new(state_dir):
        raise ConfigurationError(f"state folder {state_dir} has no store")
    with disk_errors(state_dir):
        return Store(_address(state_dir), upgrade=False)


def move_store(state_dir: Path, url: str) -> int:
    """Copy the store of ``state_dir`` into the empty database at ``url``, which is the store from then on.

    Returns the number of rows. The old store stays as it is. Raises ``StateInUseError`` while a coordinator or an API
    serves the folder, ``ConfigurationError`` for a folder without a store and for an address that cannot hold one, and
    ``StorageError`` if that database is not empty or refuses.
    """
    if is_new(state_dir):
        raise ConfigurationError(f"state folder {state_dir} has no store: there is nothing to move")
    url = absolute(url)
    alone = disk.sole_user(state_dir / _STORE_LOCK, "process, such as `coordinator api`")
    with sole_user(state_dir), alone, closing(open_store(state_dir)) as old, closing(Store(url)) as new:
        if is_in_memory(url):
            raise ConfigurationError(f"{url} is lost when its process ends: use a file or a server")
        rows = old.copy_to(new)
        with disk_errors(state_dir):
            write_durably(state_dir / ADDRESS_FILE, f"{url}\n".encode(), secret=True)  # may contain a password
    return rows


def sole_user(state_dir: Path) -> AbstractContextManager[None]:
    """Hold the folder's lock, so that nobody else serves, moves or replaces its content; else ``StateInUseError``."""
    return disk.sole_user(state_dir / _LOCK, "coordinator")


def staying(state_dir: Path) -> AbstractContextManager[None]:
    """The store of ``state_dir`` does not move meanwhile; ``StateInUseError`` while it does."""
    return disk.one_of_users(state_dir / _STORE_LOCK, "command that moves its store")


def is_served(state_dir: Path) -> bool:
    """Whether somebody holds the folder's lock now.

    The test takes a shared lock for an instant, in which :func:`sole_user` would be refused: call it rarely.
    """
    try:
        descriptor = os.open(state_dir / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _address(state_dir: Path) -> str:
    file = state_dir / ADDRESS_FILE
    return file.read_text("utf-8").strip() if file.exists() else f"sqlite:///{state_dir / SQLITE_FILE}"
