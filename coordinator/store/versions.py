"""The global models of each task."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import VersionRecord
from coordinator.store.repository import Repository


class Versions(Repository[VersionRecord]):
    """Versions by task and number."""

    table = tables.versions
    record = VersionRecord

    def add(self, version: VersionRecord) -> None:
        """Add a version; its number must be free."""
        self._insert(version)

    def get(self, task: str, number: int) -> VersionRecord | None:
        """The version with this number, or ``None`` if there is none."""
        return self._one(task=task, number=number)

    def latest(self, task: str) -> VersionRecord | None:
        """The newest version, or ``None`` before version 0."""
        return self._last("number", task=task)

    def page(self, task: str, most: int, after: int) -> tuple[VersionRecord, ...]:
        """The first ``most`` versions of a task whose numbers are above ``after``."""
        return self._some(most, "number", after, task=task)

    def all(self, task: str) -> tuple[VersionRecord, ...]:
        """Every version of a task, oldest first."""
        return self._all("number", task=task)
