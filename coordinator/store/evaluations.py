"""How well each global model does at each width."""

from __future__ import annotations

from sqlalchemy import select

from coordinator.store import tables
from coordinator.store.records import EvaluationRecord
from coordinator.store.repository import Repository


class Evaluations(Repository[EvaluationRecord]):
    """Evaluations by task, round and width."""

    table = tables.evaluations
    record = EvaluationRecord

    def put(self, evaluation: EvaluationRecord) -> None:
        """Store a result, replacing an earlier one: an evaluation that a crash interrupted is done again."""
        key = {"task": evaluation.task, "round": evaluation.round, "width": evaluation.width}
        self._delete(**key)
        self._insert(evaluation)

    def of_round(self, task: str, number: int) -> tuple[EvaluationRecord, ...]:
        """Every result of a round, smallest model first."""
        return self._all("parameters", task=task, round=number)

    def all(self, task: str) -> tuple[EvaluationRecord, ...]:
        """Every result of a task, by round, then smallest model first."""
        return self._all("round", "parameters", task=task)

    def since(self, task: str, after: int) -> tuple[EvaluationRecord, ...]:
        """Every result of a task's rounds after the round ``after``, by round, then smallest model first."""
        columns = self.table.c
        order = (columns.round, columns.parameters)
        found = select(self.table).where(columns.task == task, columns.round > after).order_by(*order)
        return self._found(found)
