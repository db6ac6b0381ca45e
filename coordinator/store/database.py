"""Open the store, and run transactions on it: committed together or not at all, and durable before anyone is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from sqlalchemy import Connection, RootTransaction, Table, event, insert, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from coordinator.store.audit import Audit
from coordinator.store.backends import backend_of
from coordinator.store.certificates import Certificates
from coordinator.store.devices import Devices
from coordinator.store.enrolments import Enrolments
from coordinator.store.evaluations import Evaluations
from coordinator.store.migrations import bring_up_to_date, revision_of
from coordinator.store.offers import Offers
from coordinator.store.outage import Outage
from coordinator.store.passwords import Passwords
from coordinator.store.records import RoundRecord
from coordinator.store.releases import Assignments, Releases, Rollouts, Roots
from coordinator.store.rounds import Rounds
from coordinator.store.tables import metadata
from coordinator.store.tasks import Tasks
from coordinator.store.tokens import Tokens
from coordinator.store.totals import Totals
from coordinator.store.updates import Updates
from coordinator.store.versions import Versions
from edge_sdk.errors import DiskFullError, StorageError

_COPIED_AT_ONCE = 500
_NUMBERED = tuple(table for table in metadata.sorted_tables if table.autoincrement_column is not None)


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
        self.roots = Roots(connection)
        self.releases = Releases(connection)
        self.rollouts = Rollouts(connection)
        self.assignments = Assignments(connection)
        self.tokens = Tokens(connection)
        self.enrolments = Enrolments(connection)
        self.certificates = Certificates(connection)
        self.passwords = Passwords(connection)
        self.audit = Audit(connection)
        self.totals = Totals(connection)

    def unaggregated(self, task: str) -> RoundRecord | None:
        """The newest round of a task, where no version has come of it."""
        latest, newest = self.versions.latest(task), self.rounds.newest(task)
        return None if newest is None or (latest is not None and newest.number <= latest.number) else newest


class Store:
    """The store at an SQLAlchemy address, made or upgraded where need be; usable from several threads and processes.

    With ``upgrade`` off it stays as it is, and only one of the newest revision can be read. Where its server does not
    answer as a transaction begins, that waits for up to ``patience_s`` seconds: :mod:`coordinator.store.outage`.
    Raises ``ConfigurationError`` for a kind of database that is not supported, and ``StorageError`` where it cannot be
    opened, or was written by a newer coordinator.
    """

    def __init__(self, url: str, *, upgrade: bool = True, patience_s: float = 0.0) -> None:
        self._backend = backend_of(url)
        self._engine = self._backend.engine(url)
        self._name = make_url(url).render_as_string(hide_password=True)
        self._outage = Outage(self._name, patience_s, partial(self._backend.answers, self._engine))
        event.listen(self._engine, "begin", self._begin)
        if upgrade:
            with self._connection(read_only=False) as connection:
                bring_up_to_date(connection, self._name)

    def revision(self) -> str | None:
        """Of its schema; ``None`` where it is empty."""
        with self._connection(read_only=True) as connection:
            return revision_of(connection)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Transaction]:
        """Read and write; committed when the block ends, undone where it raises.

        Where it need not be ``durable``, a loss of power may undo it; a crash of the process does not. That saves the
        wait for the disk, and the next durable commit makes it last too.

        Raises ``DiskFullError`` where no space is left, ``StoreAwayError`` where its server does not answer in time,
        ``StorageError`` where the database refuses otherwise, or where its server goes away meanwhile: then nobody
        knows whether it was committed, unless it broke before the block ended.
        """
        with self._connection(read_only=False, durable=durable) as connection:
            yield Transaction(connection)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Read one consistent state without waiting for a writer. Raises ``StorageError``."""
        with self._connection(read_only=True) as connection:
            yield Transaction(connection)

    def copy_to(self, other: Store) -> int:
        """Put every row into ``other`` too, in one transaction; how many. ``StorageError`` where it is not empty."""
        with self._connection(read_only=True) as source, other._connection(read_only=False) as target:
            taken = [table.name for table in metadata.sorted_tables if target.execute(select(table)).first()]
            if taken:
                raise StorageError(
                    f"store {other._name} is not empty (it has {', '.join(taken)}): use an empty database"
                )
            rows = sum(_copy(table, source, target) for table in metadata.sorted_tables)
            for table in _NUMBERED:
                other._backend.continue_numbers(target, table, self._backend.last_number(source, table))
            return rows

    def skip_numbers(self, count: int) -> None:
        """The next ``count`` numbers of what the database numbers itself are never given."""
        with self._connection(read_only=False) as connection:
            for table in _NUMBERED:
                last = self._backend.last_number(connection, table)
                self._backend.continue_numbers(connection, table, last + count)

    def close(self) -> None:
        """Close every connection; idempotent."""
        self._engine.dispose()

    def wait_no_more(self) -> None:
        """Whoever waits for the server is told at once that it is away; may be called from a signal handler."""
        self._outage.wait_no_more()

    @contextmanager
    def _connection(self, *, read_only: bool, durable: bool = True) -> Iterator[Connection]:
        try:
            transaction = self._begun(read_only=read_only, durable=durable)
            with transaction.connection as connection, transaction:
                yield connection
        except DBAPIError as error:
            raise self._translated(error) from error
        except PoolTimeoutError as error:
            raise StorageError(f"store {self._name} is busy: too many processes use it; try again") from error
        except UnicodeDecodeError as error:  # sqlite3, of what SQLite quotes of a damaged file
            raise StorageError(f"store {self._name} is damaged: restore it from a backup") from error

    def _begun(self, **options: bool) -> RootTransaction:
        """A transaction, once the server answers; not where that answers, and breaks or refuses twice."""
        is_there = False
        while True:
            try:
                transaction = self._opened(options)
            except DBAPIError as error:  # noqa: PERF203 - it waits anyway
                if not self._backend.is_cut(error):
                    raise
                was_there, is_there = is_there, not self._outage.waited(_reason(error))
                if was_there and is_there:
                    raise
            else:
                self._outage.over()
                return transaction

    def _opened(self, options: Mapping[str, bool]) -> RootTransaction:
        with ExitStack() as unless_begun:
            connection = unless_begun.enter_context(self._engine.connect().execution_options(**options))
            transaction = connection.begin()
            unless_begun.pop_all()
            return transaction

    def _begin(self, connection: Connection) -> None:
        options = connection.get_execution_options()
        self._backend.begin(connection, read_only=options.get("read_only", False), durable=options.get("durable", True))

    def _translated(self, error: DBAPIError) -> StorageError:
        """One line, whatever the driver says."""
        if error.orig is not None and self._backend.is_full(error.orig):
            return DiskFullError(f"store {self._name} cannot grow, the disk is full: free some space")
        return StorageError(f"store {self._name} refuses: {_reason(error)}")


def _reason(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())


def _copy(table: Table, source: Connection, target: Connection) -> int:
    count = 0
    for rows in source.execute(select(table)).mappings().partitions(_COPIED_AT_ONCE):
        target.execute(insert(table), [dict(row) for row in rows])
        count += len(rows)
    return count
