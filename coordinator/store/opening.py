"""Where the store of a state folder lies, how it moves to another database, and that one coordinator serves it.

coordinator.sqlite   the store, where nothing else is said
store.url            the address of another database, which then is the store
serving.lock         held by the coordinator that serves this folder
store.lock           held by every process that keeps the store open to serve others, and by the move of it
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
    """The store of ``state_dir``, made where it is not there; ``StorageError`` where it cannot be opened.

    A server that is away is waited for, now and later, as :class:`Store` does.
    """
    with disk_errors(state_dir):
        state_dir.mkdir(parents=True, exist_ok=True)
        return Store(_address(state_dir), patience_s=patience_s)


def look_into(state_dir: Path) -> Store:
    """The store of ``state_dir`` as it is, to read; ``ConfigurationError`` where there is none."""
    if is_new(state_dir):
        raise ConfigurationError(f"state folder {state_dir} has no store")
    with disk_errors(state_dir):
        return Store(_address(state_dir), upgrade=False)


def move_store(state_dir: Path, url: str) -> int:
    """Copy the store of ``state_dir`` into the empty database at ``url``, which it lies in from then on; the rows.

    The old one stays as it is. Raises ``StateInUseError`` while a coordinator serves the folder, or an API, which would
    go on writing into the old one; ``ConfigurationError`` for an address that no store can have, and ``StorageError``
    where that database is not empty or refuses.
    """
    url = absolute(url)
    alone = disk.sole_user(state_dir / _STORE_LOCK, "process, such as `coordinator api`")
    with sole_user(state_dir), alone, closing(open_store(state_dir)) as old, closing(Store(url)) as new:
        if is_in_memory(url):
            raise ConfigurationError(f"{url} forgets all with its process: name a file or a server")
        rows = old.copy_to(new)
        with disk_errors(state_dir):
            write_durably(state_dir / ADDRESS_FILE, f"{url}\n".encode(), secret=True)  # it may hold a password
    return rows


def sole_user(state_dir: Path) -> AbstractContextManager[None]:
    """Nobody else serves, moves or replaces what is in ``state_dir`` meanwhile, else ``StateInUseError``."""
    return disk.sole_user(state_dir / _LOCK, "coordinator")


def staying(state_dir: Path) -> AbstractContextManager[None]:
    """The store of ``state_dir`` does not move meanwhile; ``StateInUseError`` while it does."""
    return disk.one_of_users(state_dir / _STORE_LOCK, "command that moves its store")


def is_served(state_dir: Path) -> bool:
    """Whether somebody is its sole user now. Who would become that in this instant is refused: ask seldom."""
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
