"""The rounds of each task."""

from __future__ import annotations

from sqlalchemy import func, select

from coordinator.store import tables
from coordinator.store.records import RoundRecord
from coordinator.store.repository import Repository
from coordinator.store.states import Phase


class Rounds(Repository[RoundRecord]):
    """Rounds by task and number."""

    table = tables.rounds
    record = RoundRecord

    def add(self, opened: RoundRecord) -> None:
        """A new round; its number must be free."""
        self._insert(opened)

    def decide(self, task: str, number: int, phase: Phase, now_s: float) -> None:
        """Close or abandon a round that collects; one that is decided stays as it is."""
        self._update({"task": task, "number": number, "phase": Phase.COLLECTING}, phase=phase, closed_s=now_s)

    def abandon(self, task: str, number: int) -> None:
        """A round that was closed, and has lost the updates that it was closed with."""
        self._update({"task": task, "number": number}, phase=Phase.ABANDONED)

    def get(self, task: str, number: int) -> RoundRecord | None:
        """One round, ``None`` where there is none of this number."""
        return self._one(task=task, number=number)

    def collecting(self, task: str) -> RoundRecord | None:
        """The newest round that is not decided, ``None`` where all are."""
        return self._last("number", task=task, phase=Phase.COLLECTING)

    def newest(self, task: str) -> RoundRecord | None:
        """The round that was opened last, ``None`` before the first."""
        return self._last("number", task=task)

    def page(self, task: str, most: int, after: int) -> tuple[RoundRecord, ...]:
        """The first ``most`` rounds of a task, of those after one."""
        return self._some(most, "number", after, task=task)

    def newest_first(self, task: str, most: int) -> tuple[RoundRecord, ...]:
        """The last ``most`` rounds of a task, newest first."""
        columns = self.table.c
        found = select(self.table).where(columns.task == task).order_by(columns.number.desc()).limit(most)
        return self._found(found)

    def count(self, task: str, phase: Phase) -> int:
        """How many rounds of a task stand so."""
        columns = self.table.c
        found = select(func.count()).select_from(self.table).where(columns.task == task, columns.phase == phase)
        return self._connection.execute(found).scalar_one()

    def all(self, task: str) -> tuple[RoundRecord, ...]:
        """Every round of a task, oldest first."""
        return self._all("number", task=task)
