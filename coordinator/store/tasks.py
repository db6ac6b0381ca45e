"""What is to be trained."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import TaskRecord
from coordinator.store.repository import Repository
from coordinator.store.states import TaskStatus


class Tasks(Repository[TaskRecord]):
    """Tasks by name."""

    table = tables.tasks
    record = TaskRecord

    def add(self, name: str, config: bytes, now_s: float) -> TaskRecord:
        """A new pending task; the earlier one, unchanged, where the name is taken."""
        known = self.get(name)
        if known is not None:
            return known
        task = TaskRecord(name, now_s, TaskStatus.PENDING, config)
        self._insert(task)
        return task

    def set_status(self, name: str, status: TaskStatus, failure: str | None = None) -> None:
        """Where the task stands now, and why where it has failed."""
        self._update({"name": name}, status=status, failure=failure)

    def start(self, name: str, forgiven: int) -> None:
        """The task runs, on an operator's word: so many of its rounds came to nothing before."""
        self._update({"name": name}, status=TaskStatus.RUNNING, failure=None, forgiven=forgiven)

    def get(self, name: str) -> TaskRecord | None:
        """One task, ``None`` where there is none of this name."""
        return self._one(name=name)

    def all(self) -> tuple[TaskRecord, ...]:
        """Every task, oldest first."""
        return self._all("created_s", "name")
