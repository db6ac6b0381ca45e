"""What must reach the coordinator, until it says so: SQLite with full synchronisation, one row a message.

A message stays until :meth:`Outbox.resolve`, through any number of crashes and restarts, and is due again and again
with growing pauses. Beside it lie the few numbers of a device that must outlive it: its session count, the newest
release that it accepted, its battery, its day's budgets.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edge_sdk.errors import DiskFullError, StorageError

_MOST_DOUBLINGS = 64  # beyond it a pause that doubles would not fit into a float after some hours offline
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    key TEXT PRIMARY KEY, payload BLOB NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due_s REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""


class Outbox:
    """The file at ``path``; one process at a time. Raises ``DiskFullError`` or ``StorageError`` where it must."""

    def __init__(self, path: Path, *, first_pause_s: float, longest_pause_s: float) -> None:
        self._path = path
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            # made where the agent is made, used by its loop alone, which an application runs on another thread
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            with ExitStack() as undo:
                undo.callback(self._connection.close)
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.executescript(_SCHEMA)
                undo.pop_all()

    def put(self, key: str, payload: bytes) -> None:
        """Keep a message; durable when this returns. The same key again changes nothing."""
        self._run("INSERT OR IGNORE INTO messages (key, payload) VALUES (?, ?)", key, payload)

    def due(self, now_s: float) -> list[tuple[str, bytes]]:
        """Keys and messages whose pause is over, oldest first; each is then pausing, twice as long as before."""
        rows = self._run("SELECT key, payload, attempts FROM messages WHERE due_s <= ? ORDER BY rowid", now_s)
        for key, _, attempts in rows:
            pause_s = min(self._longest_pause_s, self._first_pause_s * 2 ** min(attempts, _MOST_DOUBLINGS))
            self._run("UPDATE messages SET attempts = attempts + 1, due_s = ? WHERE key = ?", now_s + pause_s, key)
        return [(key, payload) for key, payload, _ in rows]

    def hurry(self) -> None:
        """Everything is due at once: the clock was another one before a restart, or the link is back."""
        self._run("UPDATE messages SET attempts = 0, due_s = 0")

    def pending(self) -> list[tuple[str, bytes]]:
        """Every message that has no answer yet, oldest first."""
        return [(key, payload) for key, payload in self._run("SELECT key, payload FROM messages ORDER BY rowid")]

    def resolve(self, key: str) -> bool:
        """The coordinator has it: forget it. Whether it was there."""
        return bool(self._run("DELETE FROM messages WHERE key = ? RETURNING key", key))

    def number(self, name: str) -> float | None:
        """A kept number, ``None`` before it was ever set."""
        rows = self._run("SELECT value FROM numbers WHERE name = ?", name)
        return float(rows[0][0]) if rows else None

    def set_number(self, name: str, value: float) -> None:
        """Keep a number; durable when this returns."""
        self._run("INSERT OR REPLACE INTO numbers (name, value) VALUES (?, ?)", name, value)

    def set_numbers(self, numbers: Mapping[str, float]) -> None:
        """Keep several at once, all or none."""
        places = ", ".join(["(?, ?)"] * len(numbers))
        values = (value for pair in numbers.items() for value in pair)
        self._run(f"INSERT OR REPLACE INTO numbers (name, value) VALUES {places}", *values)  # noqa: S608 places alone

    def close(self) -> None:
        """Close the file; idempotent."""
        self._connection.close()

    def _run(self, statement: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        with self._disk_errors():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if _is_full(error):
                raise DiskFullError(f"no space left for {self._path}: free some") from error
            raise StorageError(f"outbox {self._path} cannot be used: {error}") from error


def _is_full(error: sqlite3.Error | OSError) -> bool:
    # SQLite's code of an error is known from Python 3.11 on only; its text names no path that could contain the word
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "is full" in str(error)
