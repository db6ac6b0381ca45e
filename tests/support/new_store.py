"""An empty store, of which a file is copied: migrating a new one takes longer than most tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from coordinator.store.database import Store
from coordinator.store.opening import SQLITE_FILE, open_store


@cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        open_store(Path(folder)).close()
        return (Path(folder) / SQLITE_FILE).read_bytes()


def new_store(folder: Path) -> Store:
    """Of the newest schema, in ``folder``."""
    (folder / SQLITE_FILE).write_bytes(_empty())
    return open_store(folder)
