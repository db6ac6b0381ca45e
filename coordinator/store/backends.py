"""The databases that a store stands on, and what each needs so that all keep the same promises.

    SQLite       in the state folder; nothing to set up
    PostgreSQL   ``postgresql://user@host/name``; for fleets that outgrow a file, and for its backups

A commit outlives a loss of power. Writers queue up behind each other from their first statement on, so no transaction
fails half-way because another was faster; readers wait for nobody and see one consistent state.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import (
    Connection,
    Engine,
    Function,
    Integer,
    QueuePool,
    String,
    Table,
    cast,
    column,
    create_engine,
    delete,
    event,
    func,
    insert,
    make_url,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from edge_sdk.errors import ConfigurationError

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for another one."""
_CONNECT_TIMEOUT_S = 10
_MAX_CONNECTIONS = {"pool_size": 5, "max_overflow": 60}
"""Of a process: more than the threads that a server of it has, so that none waits for a connection of another."""
_PRAGMAS = (f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}", "synchronous=FULL", "foreign_keys=ON")
_SEQUENCES = table("sqlite_sequence", column("name", String), column("seq", Integer))
_SHUTTING_DOWN = frozenset({"57P01", "57P02", "57P03"})  # SQL states of a server that ends, has crashed, or starts up
_WRITER = 0x7261_6666_6D  # PostgreSQL's advisory lock of whoever writes; any number that no other program takes


class Backend(Protocol):
    """One kind of database."""

    def engine(self, url: str) -> Engine:
        """Not connected yet."""

    def begin(self, connection: Connection, *, read_only: bool, durable: bool) -> None:
        """The first statements of a transaction."""

    def last_number(self, connection: Connection, table: Table) -> int:
        """The last number that the database gave in a table that it numbers itself; 0 before the first."""

    def continue_numbers(self, connection: Connection, table: Table, last: int) -> None:
        """The next number that it gives there is ``last`` + 1."""

    def is_full(self, error: BaseException) -> bool:
        """Whether what the driver raised says that no space is left."""

    def is_cut(self, error: DBAPIError, /) -> bool:
        """Whether there is no connection, or none any more."""

    def answers(self, engine: Engine, /) -> bool:
        """Whether the server takes connections now, whomever it would let in."""


def backend_of(url: str) -> Backend:
    """Which one an SQLAlchemy address names; ``ConfigurationError`` for any other."""
    try:
        name = make_url(url).get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        name = url.partition(":")[0]
    if name not in _BACKENDS:
        raise ConfigurationError(f"a store cannot be kept in {name!r}: use sqlite:///FILE or postgresql://…")
    return _BACKENDS[name]()


def is_in_memory(url: str) -> bool:
    """Whether a database is gone with its process."""
    parts = make_url(url)
    return parts.get_backend_name() == "sqlite" and parts.database in {None, "", ":memory:"}


def absolute(url: str) -> str:
    """The same database from wherever it is opened: a file is named from the root on. Raises as :func:`backend_of`."""
    backend_of(url)
    parts = make_url(url)
    if parts.get_backend_name() != "sqlite" or is_in_memory(url):
        return url
    return parts.set(database=str(Path(parts.database or "").absolute())).render_as_string(hide_password=False)


class Sqlite:
    """With a write-ahead log, so that others read while one writes."""

    def engine(self, url: str) -> Engine:
        """One file, or memory, which has one connection that threads take in turn."""
        size = {"pool_size": 1, "max_overflow": 0} if is_in_memory(url) else _MAX_CONNECTIONS
        engine = create_engine(url, poolclass=QueuePool, connect_args={"check_same_thread": False}, **size)
        event.listen(engine, "connect", _set_up)
        return engine

    def begin(self, connection: Connection, *, read_only: bool, durable: bool) -> None:
        """A writer takes the lock at once."""
        wanted = "FULL" if durable else "NORMAL"
        if not read_only and connection.info.get("synchronous") != wanted:  # it stays with the connection
            connection.exec_driver_sql(f"PRAGMA synchronous={wanted}")
            connection.info["synchronous"] = wanted
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    def last_number(self, connection: Connection, table: Table) -> int:
        """Of AUTOINCREMENT."""
        found = connection.execute(select(_SEQUENCES.c.seq).where(_SEQUENCES.c.name == table.name))
        return found.scalar_one_or_none() or 0

    def continue_numbers(self, connection: Connection, table: Table, last: int) -> None:
        """SQLite has no key there: what was is taken out first."""
        connection.execute(delete(_SEQUENCES).where(_SEQUENCES.c.name == table.name))
        connection.execute(insert(_SEQUENCES).values(name=table.name, seq=last))

    def is_full(self, error: BaseException) -> bool:
        """SQLite says it in words."""
        return "database or disk is full" in str(error)

    def is_cut(self, _: DBAPIError, /) -> bool:
        """There is no server."""
        return False

    def answers(self, _: Engine, /) -> bool:
        """There is no server."""
        return True


class Postgres:
    """Any server that libpq reaches; its own settings say how, as ``PGPASSFILE`` or ``sslmode`` in the address."""

    def engine(self, url: str) -> Engine:
        """A connection that the server has dropped meanwhile is made anew."""
        options = {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "raffm-edge"}
        address = make_url(url).set(drivername="postgresql+psycopg")
        try:
            return create_engine(address, pool_pre_ping=True, connect_args=options, **_MAX_CONNECTIONS)
        except ModuleNotFoundError as error:
            raise ConfigurationError("PostgreSQL needs its driver: pip install 'raffm-edge[postgres]'") from error

    def begin(self, connection: Connection, *, read_only: bool, durable: bool) -> None:
        """A writer sees what was committed while it waited for the lock; a reader sees one moment."""
        if read_only:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        if not durable:
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")

    def last_number(self, connection: Connection, table: Table) -> int:
        """Of its sequence."""
        last = func.pg_sequence_last_value(cast(_sequence_of(table), REGCLASS))
        return connection.execute(select(last)).scalar_one() or 0

    def continue_numbers(self, connection: Connection, table: Table, last: int) -> None:
        """A sequence that has given nothing cannot be set to 0."""
        if last > 0:
            connection.execute(select(func.setval(_sequence_of(table), last)))

    def is_full(self, error: BaseException) -> bool:
        """The SQL standard's code."""
        return getattr(error, "sqlstate", None) == "53100"

    def is_cut(self, error: DBAPIError, /) -> bool:
        """Without a statement, it could not connect."""
        state = getattr(error.orig, "sqlstate", None)
        return error.statement is None or error.connection_invalidated or state in _SHUTTING_DOWN

    def answers(self, engine: Engine, /) -> bool:
        """As ``pg_isready`` finds: a server that still starts up, or is shutting down, does not."""
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - an extra
        from psycopg.pq import Conninfo, PGconn, Ping  # noqa: PLC0415 - an extra

        _, options = engine.dialect.create_connect_args(engine.url)
        options["connect_timeout"] = _CONNECT_TIMEOUT_S
        known = {option.keyword.decode() for option in Conninfo.get_defaults()}  # others are the driver's own
        told = make_conninfo("", **{name: value for name, value in options.items() if name in known})
        return PGconn.ping(told.encode()) not in {Ping.REJECT, Ping.NO_RESPONSE}


_BACKENDS: Mapping[str, type[Backend]] = {"sqlite": Sqlite, "postgresql": Postgres}


def _sequence_of(table: Table) -> Function[Any]:
    numbered = table.autoincrement_column
    return func.pg_get_serial_sequence(table.name, "" if numbered is None else numbered.name)


def _set_up(connection: DBAPIConnection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where Sqlite.begin says, not where sqlite3 guesses
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
