"""How much there is of everything, counted by the database: for who watches a fleet and must not read all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, case, func, literal, select, text

from coordinator.store import tables
from coordinator.store.states import AssignmentStatus, Outcome, Phase, TaskStatus
from edge_sdk.protocol.messages import Failure, Refusal, Verdict


@dataclass(frozen=True, slots=True)
class RoundTotals:
    """The rounds of a task in one phase: how many, the newest's number, and when the last of them was decided."""

    count: int
    newest: int
    closed_s: float | None


class Totals:
    """Of whole tables, or of one task's rounds from ``after``, which is not one of them, up to ``until``, which is."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def devices(self) -> Mapping[tuple[str, bool, bool], int]:
        """By profile, whether they are online, and whether they are revoked."""
        columns = tables.devices.c
        by = (columns.profile, columns.online, columns.revoked_s.is_not(None).label("revoked"))
        rows = self._connection.execute(select(*by, func.count()).group_by(*by))
        return {(profile, online, bool(revoked)): count for profile, online, revoked, count in rows}

    def tasks(self) -> Mapping[TaskStatus, int]:
        """By status."""
        status = tables.tasks.c.status
        rows = self._connection.execute(select(status, func.count()).group_by(status))
        return dict(rows.all())

    def rounds(self) -> Mapping[tuple[str, Phase], RoundTotals]:
        """By task and phase."""
        columns = tables.rounds.c
        by = (columns.task, columns.phase)
        figures = (func.count(), func.max(columns.number), func.max(columns.closed_s))
        rows = self._connection.execute(select(*by, *figures).group_by(*by))
        return {(task, phase): RoundTotals(*found) for task, phase, *found in rows}

    def assignments(self) -> Mapping[tuple[str, AssignmentStatus], int]:
        """By task and status, of each device the newest of a task: what came before it does not count any more."""
        columns = tables.assignments.c
        by, newest = (
            (columns.task, columns.status),
            select(func.max(columns.number)).group_by(columns.device, columns.task),
        )
        rows = self._connection.execute(select(*by, func.count()).where(columns.number.in_(newest)).group_by(*by))
        return {(task, status): count for task, status, count in rows}

    def offers(self, task: str, after: int, until: int) -> Mapping[tuple[Outcome, Failure | None], int]:
        """Of these rounds, by outcome and failure."""
        columns = tables.offers.c
        by = (columns.outcome, columns.failure)
        chosen = (columns.task == task, columns.round > after, columns.round <= until)
        rows = self._connection.execute(select(*by, func.count()).where(*chosen).group_by(*by))
        return {(outcome, failure): count for outcome, failure, count in rows}

    def updates(self, task: str, after: int, until: int) -> Mapping[Verdict, tuple[int, int]]:
        """Of these rounds, by the verdict that they got when they came: how many, and their bytes together.

        An update of a device that was revoked since was accepted then.
        """
        columns = tables.updates.c
        chosen = (columns.task == task, columns.round > after, columns.round <= until)
        figures = (func.count(), func.sum(columns.size_bytes))
        was_accepted = columns.reason.startswith(Refusal.REVOKED.value)
        verdict = case((was_accepted, literal(Verdict.ACCEPTED, columns.verdict.type)), else_=columns.verdict)
        counted = select(verdict.label("first"), *figures).where(*chosen).group_by(text("first"))
        rows = self._connection.execute(counted)
        return {verdict: (count, int(size_bytes)) for verdict, count, size_bytes in rows}
