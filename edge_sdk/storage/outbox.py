"""Messages that must reach the coordinator, until it acknowledges them: SQLite with synchronous=FULL, one row each.

A message stays until :meth:`Outbox.resolve`, through any number of crashes and restarts, and is due again and again
after growing pauses. These are kept in memory alone: an attempt neither wears out the disk nor needs room on it. The
same file holds the few numbers of a device that have to survive a restart: the count of its sessions, its simulated
battery, and its day's budgets.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edge_sdk.errors import DiskFullError, StorageError

_log = logging.getLogger(__name__)
_MALFORMED, _FOREIGN = "malformed", "file is not a database"  # codes of errors come with Python 3.11 only
_MAX_DOUBLINGS = 64  # of a pause: after days offline, its power of two would overflow a float
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (key TEXT PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""


class Outbox:
    """The outbox in the file ``path``, for one process at a time; pauses between attempts double.

    A file that is damaged is set aside, beside it, and the log says so. What was in it is lost, and nothing can count
    twice: a coordinator takes one update of a device in a round, and refuses another.

    Raises ``DiskFullError`` or ``StorageError`` where the disk refuses.
    """

    def __init__(self, path: Path, *, first_pause_s: float, max_pause_s: float) -> None:
        self._path = path
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._attempts: dict[str, int] = {}
        self._due_s: dict[str, float] = {}
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = _opened(path)
            except sqlite3.DatabaseError as error:
                if not _is_damaged(error):
                    raise
                _set_aside(path, error)
                self._connection = _opened(path)

    def put(self, key: str, payload: bytes) -> None:
        """Store a message; durable when this returns. A key that is there already changes nothing."""
        self._run("INSERT OR IGNORE INTO messages (key, payload) VALUES (?, ?)", key, payload)

    def due(self, now_s: float) -> list[tuple[str, bytes]]:
        """Keys and messages whose pause is over, oldest first; their next pause, twice as long, begins.

        After a restart, all are due.
        """
        found = [(key, payload) for key, payload in self.pending() if self._due_s.get(key, now_s) <= now_s]
        for key, _ in found:
            attempts = self._attempts.get(key, 0)
            pause_s = min(self._max_pause_s, self._first_pause_s * 2 ** min(attempts, _MAX_DOUBLINGS))
            self._attempts[key], self._due_s[key] = attempts + 1, now_s + pause_s
        return found

    def hurry(self) -> None:
        """Make every message due now, when the link is back."""
        self._attempts.clear()
        self._due_s.clear()

    def pending(self) -> list[tuple[str, bytes]]:
        """Every message that is not acknowledged yet, oldest first."""
        return [(key, payload) for key, payload in self._run("SELECT key, payload FROM messages ORDER BY rowid")]

    def resolve(self, key: str) -> bool:
        """Delete a message that the coordinator has; whether it was there."""
        self._attempts.pop(key, None)
        self._due_s.pop(key, None)
        return bool(self._run("DELETE FROM messages WHERE key = ? RETURNING key", key))

    def number(self, name: str) -> float | None:
        """A stored number, ``None`` if it was never set."""
        rows = self._run("SELECT value FROM numbers WHERE name = ?", name)
        return float(rows[0][0]) if rows else None

    def set_number(self, name: str, value: float) -> None:
        """Store a number; durable when this returns."""
        self._run("INSERT OR REPLACE INTO numbers (name, value) VALUES (?, ?)", name, value)

    def set_numbers(self, numbers: Mapping[str, float]) -> None:
        """Store several numbers in one transaction."""
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
            advice = "; start the agent again, which sets it aside and begins another" if _is_damaged(error) else ""
            raise StorageError(f"outbox {self._path} cannot be used: {error}{advice}") from error


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to the checked file. It is made on the application's thread and used by the agent's loop alone."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with ExitStack() as undo:
        undo.callback(connection.close)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_SCHEMA)
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(f"{_MALFORMED}: {found}")
        undo.pop_all()
    return connection


def _set_aside(path: Path, error: Exception) -> None:
    """Rename the damaged file and its log; what was set aside before is replaced, so that the disk does not fill."""
    aside = path.with_name(f"{path.name}.damaged")
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    _log.error(
        "outbox %s is damaged (%s) and was set aside as %s: updates that the coordinator had not confirmed are lost, "
        "and the day's budgets begin again; look at the disk",
        path,
        error,
        aside.name,
    )


def _is_damaged(error: Exception) -> bool:
    return isinstance(error, sqlite3.DatabaseError) and any(words in str(error) for words in (_MALFORMED, _FOREIGN))


def _is_full(error: sqlite3.Error | OSError) -> bool:
    # sqlite3 exposes error codes only from Python 3.11 on; the text contains no path that could match by accident
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return "is full" in str(error)
