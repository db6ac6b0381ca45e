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
        """Add a round; its number must be free."""
        self._insert(opened)

    def decide(self, task: str, number: int, phase: Phase, now_s: float) -> None:
        """Close or abandon a round that is collecting; a round that is decided already does not change."""
        self._update({"task": task, "number": number, "phase": Phase.COLLECTING}, phase=phase, closed_s=now_s)

    def abandon(self, task: str, number: int) -> None:
        """Abandon a round that was closed, because the updates that it was closed with are lost."""
        self._update({"task": task, "number": number}, phase=Phase.ABANDONED)

    def get(self, task: str, number: int) -> RoundRecord | None:
        """The round with this number, or ``None`` if there is none."""
        return self._one(task=task, number=number)

    def collecting(self, task: str) -> RoundRecord | None:
        """The newest round that is still collecting, or ``None`` if all are decided."""
        return self._last("number", task=task, phase=Phase.COLLECTING)

    def newest(self, task: str) -> RoundRecord | None:
        """The round that was opened last, or ``None`` before the first."""
        return self._last("number", task=task)

    def page(self, task: str, most: int, after: int) -> tuple[RoundRecord, ...]:
        """The first ``most`` rounds of a task whose numbers are above ``after``."""
        return self._some(most, "number", after, task=task)

    def newest_first(self, task: str, most: int) -> tuple[RoundRecord, ...]:
        """The last ``most`` rounds of a task, newest first."""
        columns = self.table.c
        found = select(self.table).where(columns.task == task).order_by(columns.number.desc()).limit(most)
        return self._found(found)

    def count(self, task: str, phase: Phase) -> int:
        """The number of a task's rounds in this phase."""
        columns = self.table.c
        found = select(func.count()).select_from(self.table).where(columns.task == task, columns.phase == phase)
        return self._connection.execute(found).scalar_one()

    def all(self, task: str) -> tuple[RoundRecord, ...]:
        """Every round of a task, oldest first."""
        return self._all("number", task=task)
