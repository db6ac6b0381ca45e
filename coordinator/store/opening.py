"""Where the store of a state folder lies."""

from __future__ import annotations

from pathlib import Path

from coordinator.store.database import Store
from edge_sdk.errors import StorageError


def open_store(state_dir: Path) -> Store:
    """The SQLite store in ``state_dir``, made where it is not there; ``StorageError`` where the disk refuses."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"state folder {state_dir} cannot be made: {error.strerror}") from error
    return Store(f"sqlite:///{state_dir / 'coordinator.sqlite'}")
