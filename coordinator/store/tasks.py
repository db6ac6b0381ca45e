"""The training tasks."""

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
        """Add a pending task; if the name is taken, the existing task is returned unchanged."""
        known = self.get(name)
        if known is not None:
            return known
        task = TaskRecord(name, now_s, TaskStatus.PENDING, config)
        self._insert(task)
        return task

    def set_status(self, name: str, status: TaskStatus, failure: str | None = None) -> None:
        """Set a task's status, and the reason if it has failed."""
        self._update({"name": name}, status=status, failure=failure)

    def start(self, name: str, forgiven: int) -> None:
        """Set a pending task running; ``forgiven`` of its first rounds no longer count as failed.

        A task to which an operator has given another status meanwhile keeps that.
        """
        changes = {"status": TaskStatus.RUNNING, "failure": None, "forgiven": forgiven}
        self._update({"name": name, "status": TaskStatus.PENDING}, **changes)

    def get(self, name: str) -> TaskRecord | None:
        """The task with this name, or ``None`` if there is none."""
        return self._one(name=name)

    def all(self) -> tuple[TaskRecord, ...]:
        """Every task, oldest first."""
        return self._all("created_s", "name")
