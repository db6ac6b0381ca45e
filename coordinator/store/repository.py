"""What all repositories do: rows to values and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, insert, select, update

_R = TypeVar("_R")


class Repository(Generic[_R]):
    """One table, inside one transaction; ``table`` and ``record`` have the same fields."""

    table: ClassVar[Table]
    record: type[_R]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _insert(self, record: _R) -> None:
        values = {field.name: getattr(record, field.name) for field in fields(record)}  # type: ignore[arg-type]
        self._connection.execute(insert(self.table).values(values))

    def _update(self, key: dict[str, object], **changes: object) -> None:
        self._connection.execute(update(self.table).where(self._matches(key)).values(changes))

    def _one(self, **key: object) -> _R | None:
        """The only record with these values, ``None`` where there is none."""
        row = self._connection.execute(select(self.table).where(self._matches(key))).one_or_none()
        return None if row is None else self._read(row)

    def _all(self, *order: str, **key: object) -> tuple[_R, ...]:
        """Every record with these values, in the order of these columns."""
        query = select(self.table).where(self._matches(key)).order_by(*(self.table.c[name] for name in order))
        return tuple(map(self._read, self._connection.execute(query)))

    def _matches(self, key: dict[str, object]) -> ColumnElement[bool]:
        return and_(True, *(self.table.c[name] == value for name, value in key.items()))

    def _read(self, row: Row[Any]) -> _R:
        return self.record(**row._mapping)  # noqa: SLF001
