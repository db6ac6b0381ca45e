"""What all repositories share: turning rows into values and values into rows.

Statements are built once and then executed with parameters, because building one takes longer than SQLite takes to
execute it.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)

_R = TypeVar("_R")


class Repository(Generic[_R]):
    """One table within one transaction; ``table`` and ``record`` have the same fields."""

    table: ClassVar[Table]
    record: type[_R]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _insert(self, record: _R) -> None:
        values = {field.name: getattr(record, field.name) for field in fields(record)}  # type: ignore[arg-type]
        self._connection.execute(insert(self.table), values)

    def _update(self, key: dict[str, object], **changes: object) -> None:
        statement = _updating(self.table, tuple(key), tuple(changes))
        self._connection.execute(statement, _named("is", key) | _named("becomes", changes))

    def _delete(self, **key: object) -> None:
        self._connection.execute(delete(self.table).where(_matches(self.table, tuple(key))), _named("is", key))

    def _one(self, **key: object) -> _R | None:
        """The only record with these values, or ``None`` if there is none."""
        row = self._connection.execute(_selecting(self.table, tuple(key)), _named("is", key)).one_or_none()
        return None if row is None else self._read(row)

    def _all(self, *order: str, **key: object) -> tuple[_R, ...]:
        """Every record with these values, sorted by the columns ``order``."""
        return self._found(_selecting(self.table, tuple(key), order), **key)

    def _some(self, most: int, order: str, after: object, **key: object) -> tuple[_R, ...]:
        """At most ``most`` records with these values and above ``after`` in the column ``order``, sorted by it."""
        statement = _selecting(self.table, tuple(key), (order,)).where(self.table.c[order] > after).limit(most)
        return self._found(statement, **key)

    def _last(self, order: str, **key: object) -> _R | None:
        """The record with these values that is greatest in the column ``order``, or ``None`` if there is none."""
        row = self._connection.execute(_newest(self.table, tuple(key), order), _named("is", key)).one_or_none()
        return None if row is None else self._read(row)

    def _found(self, statement: Select[Any], **key: object) -> tuple[_R, ...]:
        """The records of the table that a statement selects."""
        return tuple(map(self._read, self._connection.execute(statement, _named("is", key))))

    def _read(self, row: Row[Any]) -> _R:
        return self.record(**row._mapping)  # noqa: SLF001


@cache
def _selecting(table: Table, key: tuple[str, ...], order: tuple[str, ...] = ()) -> Select[Any]:
    return select(table).where(_matches(table, key)).order_by(*(table.c[name] for name in order))


@cache
def _newest(table: Table, key: tuple[str, ...], order: str) -> Select[Any]:
    return select(table).where(_matches(table, key)).order_by(table.c[order].desc()).limit(1)


@cache
def _updating(table: Table, key: tuple[str, ...], changes: tuple[str, ...]) -> Update:
    return update(table).where(_matches(table, key)).values({name: bindparam(f"becomes_{name}") for name in changes})


def _matches(table: Table, key: tuple[str, ...]) -> ColumnElement[bool]:
    return and_(True, *(table.c[name] == bindparam(f"is_{name}") for name in key))


def _named(prefix: str, values: dict[str, object]) -> dict[str, object]:
    return {f"{prefix}_{name}": value for name, value in values.items()}
