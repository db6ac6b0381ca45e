"""How the schema came to be, one Alembic revision a change; a store is brought up to date when it is opened.

``env.py`` is what Alembic runs, ``versions/`` has the revisions. A new one goes there, :data:`HEAD` names it, and
:mod:`coordinator.store.tables` says the same: a test compares them on every database.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from sqlalchemy import Connection, Inspector, String, column, inspect, select, table

from edge_sdk.errors import StorageError

HEAD = "10"
"""The newest revision."""
_alembic = Lock()  # what a revision calls is Alembic's one environment in this process
_VERSION = table("alembic_version", column("version_num", String))


def bring_up_to_date(connection: Connection, name: str) -> None:
    """Make or upgrade the tables of the store ``name``, within the transaction of ``connection``.

    Raises ``StorageError`` where a newer coordinator has written the store.
    """
    found = revision_of(connection)
    if found == HEAD:
        return
    if found is not None and not (found.isdecimal() and int(found) < int(HEAD)):
        raise StorageError(
            f"store {name} has schema version {found}, this coordinator knows {HEAD}: update the coordinator"
        )
    move_to(connection, HEAD)


def revision_of(connection: Connection) -> str | None:
    """Where the schema stands; ``None`` of an empty database. ``StorageError`` of a damaged one."""
    inspector: Inspector = inspect(connection)
    if not inspector.has_table("alembic_version"):
        return None
    found = connection.execute(select(_VERSION.c.version_num)).scalars().all()
    if len(found) > 1:
        raise StorageError(f"the store is damaged: it says to be of {len(found)} schema versions; restore a backup")
    return found[0] if found else None


def move_to(connection: Connection, revision: str) -> None:
    """Run the migrations between here and ``revision``, upwards or downwards; ``base`` is an empty database."""
    from alembic import command  # noqa: PLC0415 - a third of a second, of which only the first start has need
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    is_down = revision == "base" or int(revision) < int(revision_of(connection) or 0)
    with _alembic:
        (command.downgrade if is_down else command.upgrade)(config, revision)
