"""Open the store, and run transactions on it.

SQLite with a write-ahead log, so that others read while one writes, and ``synchronous=FULL``, so that what was
committed survives a loss of power: a receipt is sent after the commit. Writers queue up behind each other from their
first statement on (BEGIN IMMEDIATE), so no transaction fails half-way because another was faster.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, insert, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DBAPIError

from coordinator.store import tables
from coordinator.store.devices import Devices
from coordinator.store.evaluations import Evaluations
from coordinator.store.offers import Offers
from coordinator.store.releases import Releases
from coordinator.store.rounds import Rounds
from coordinator.store.tasks import Tasks
from coordinator.store.updates import Updates
from coordinator.store.versions import Versions
from edge_sdk.errors import DiskFullError, StorageError

BUSY_TIMEOUT_S = 30.0
_PRAGMAS = (f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}", "synchronous=FULL", "foreign_keys=ON")


class Transaction:
    """Every repository, on one connection: what is done here is committed together or not at all."""

    def __init__(self, connection: Connection) -> None:
        self.devices = Devices(connection)
        self.tasks = Tasks(connection)
        self.versions = Versions(connection)
        self.rounds = Rounds(connection)
        self.offers = Offers(connection)
        self.updates = Updates(connection)
        self.evaluations = Evaluations(connection)
        self.releases = Releases(connection)


class Store:
    """The store at an SQLAlchemy address, created where it does not exist; usable from several threads and processes.

    Raises ``StorageError`` where it cannot be opened, or was written by a newer coordinator.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine = _engine(url)
        with self._connection(read_only=False) as connection:
            tables.metadata.create_all(connection)
            self._check_schema(connection)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Transaction]:
        """Read and write; committed when the block ends, undone where it raises.

        Where it need not be ``durable``, a loss of power may undo it; a crash of the process does not. That saves the
        wait for the disk, and the next durable commit makes it last too.

        Raises ``DiskFullError`` where no space is left, ``StorageError`` where the database refuses otherwise.
        """
        with self._connection(read_only=False, durable=durable) as connection:
            yield Transaction(connection)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Read one consistent state without waiting for a writer. Raises ``StorageError``."""
        with self._connection(read_only=True) as connection:
            yield Transaction(connection)

    def close(self) -> None:
        """Close every connection; idempotent."""
        self._engine.dispose()

    @contextmanager
    def _connection(self, *, read_only: bool, durable: bool = True) -> Iterator[Connection]:
        options = {"read_only": read_only, "durable": durable}
        try:
            with self._engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise _translated(error, self._url) from error

    def _check_schema(self, connection: Connection) -> None:
        found = connection.execute(select(tables.schema_version.c.version)).scalar_one_or_none()
        if found is None:
            connection.execute(insert(tables.schema_version).values(version=tables.SCHEMA_VERSION))
        elif found > tables.SCHEMA_VERSION:
            known = tables.SCHEMA_VERSION
            msg = (
                f"store {self._url} has schema version {found}, this coordinator knows {known}: update the coordinator"
            )
            raise StorageError(msg)


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url)
    is_in_memory = make_url(url).database in {None, "", ":memory:"}
    # a database in memory is its only connection, which threads then take in turn
    size = {"pool_size": 1, "max_overflow": 0} if is_in_memory else {}
    engine = create_engine(url, poolclass=QueuePool, connect_args={"check_same_thread": False}, **size)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: DBAPIConnection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin says, not where sqlite3 guesses
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: DBAPICursor) -> None:
    """Of two that make the same store at once, SQLite refuses one without waiting, whatever its busy timeout."""
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:  # noqa: PERF203 - it waits anyway
            if "locked" not in str(error) or time.monotonic() > deadline_s:
                raise
            time.sleep(0.01)
        else:
            return


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    read_only = options.get("read_only", False)
    if not read_only:
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('durable', True) else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _translated(error: DBAPIError, url: str) -> StorageError:
    """One line, whatever the driver says."""
    reason = " ".join(str(error.orig).split())
    if "database or disk is full" in reason:
        return DiskFullError(f"store {url} cannot grow, the disk is full: free some space")
    return StorageError(f"store {url} refuses: {reason}")
