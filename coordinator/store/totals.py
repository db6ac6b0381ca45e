"""Counts of everything in the store, made by the database, so that monitoring a fleet need not read all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, case, func, literal, select, text

from coordinator.store import tables
from coordinator.store.states import AssignmentStatus, Outcome, Phase, TaskStatus
from edge_sdk.protocol.messages import Failure, Refusal, Verdict


@dataclass(frozen=True, slots=True)
class RoundTotals:
    """A task's rounds in one phase: their count, the newest one's number, and when the last of them was decided."""

    count: int
    newest: int
    closed_s: float | None


class Totals:
    """Counts of whole tables, or of one task's rounds from ``after`` (exclusive) to ``until`` (inclusive)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def devices(self) -> Mapping[tuple[str, bool, bool], int]:
        """The number of devices by profile, whether they are online, and whether they are revoked."""
        columns = tables.devices.c
        by = (columns.profile, columns.online, columns.revoked_s.is_not(None).label("revoked"))
        rows = self._connection.execute(select(*by, func.count()).group_by(*by))
        return {(profile, online, bool(revoked)): count for profile, online, revoked, count in rows}

    def tasks(self) -> Mapping[TaskStatus, int]:
        """The number of tasks by status; statuses without tasks are missing."""
        status = tables.tasks.c.status
        rows = self._connection.execute(select(status, func.count()).group_by(status))
        return dict(rows.all())

    def rounds(self) -> Mapping[tuple[str, Phase], RoundTotals]:
        """The totals of rounds by task and phase; combinations without rounds are missing."""
        columns = tables.rounds.c
        by = (columns.task, columns.phase)
        figures = (func.count(), func.max(columns.number), func.max(columns.closed_s))
        rows = self._connection.execute(select(*by, *figures).group_by(*by))
        return {(task, phase): RoundTotals(*found) for task, phase, *found in rows}

    def assignments(self) -> Mapping[tuple[str, AssignmentStatus], int]:
        """The number of devices by task and by the status of their newest assignment of that task."""
        columns = tables.assignments.c
        by, newest = (
            (columns.task, columns.status),
            select(func.max(columns.number)).group_by(columns.device, columns.task),
        )
        rows = self._connection.execute(select(*by, func.count()).where(columns.number.in_(newest)).group_by(*by))
        return {(task, status): count for task, status, count in rows}

    def offers(self, task: str, after: int, until: int) -> Mapping[tuple[Outcome, Failure | None], int]:
        """The number of offers of these rounds, by outcome and failure."""
        columns = tables.offers.c
        by = (columns.outcome, columns.failure)
        chosen = (columns.task == task, columns.round > after, columns.round <= until)
        rows = self._connection.execute(select(*by, func.count()).where(*chosen).group_by(*by))
        return {(outcome, failure): count for outcome, failure, count in rows}

    def updates(self, task: str, after: int, until: int) -> Mapping[Verdict, tuple[int, int]]:
        """The number of updates of these rounds and their total size in bytes, by the verdict that they got on arrival.

        An update whose device was revoked later counts as accepted.
        """
        columns = tables.updates.c
        chosen = (columns.task == task, columns.round > after, columns.round <= until)
        figures = (func.count(), func.sum(columns.size_bytes))
        was_accepted = columns.reason.startswith(Refusal.REVOKED.value)
        verdict = case((was_accepted, literal(Verdict.ACCEPTED, columns.verdict.type)), else_=columns.verdict)
        counted = select(verdict.label("first"), *figures).where(*chosen).group_by(text("first"))
        rows = self._connection.execute(counted)
        return {verdict: (count, int(size_bytes)) for verdict, count, size_bytes in rows}
