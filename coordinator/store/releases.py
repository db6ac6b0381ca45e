"""Roots of trust, releases with their signatures, rollouts, and the assignments that each device was given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace

from sqlalchemy import ColumnElement, Select, func, insert, select, true

from coordinator.store import tables
from coordinator.store.plan import Plan
from coordinator.store.records import AssignmentRecord, ReleaseRecord, RolloutRecord, RootRecord
from coordinator.store.repository import Repository
from coordinator.store.states import AssignmentStatus, RolloutStatus
from edge_sdk.protocol.messages import ReleaseReport
from edge_sdk.protocol.signing import Signature


class Roots(Repository[RootRecord]):
    """Roots of trust by version."""

    table = tables.roots
    record = RootRecord

    def add(self, root: RootRecord) -> None:
        """Add a root; its version must be free."""
        self._insert(root)

    def latest(self) -> RootRecord | None:
        """The newest root, or ``None`` before the first."""
        return self._last("version")

    def all(self) -> tuple[RootRecord, ...]:
        """Every root, oldest first."""
        return self._all("version")


class Releases(Repository[ReleaseRecord]):
    """Releases by their number, which always rises."""

    table = tables.releases
    record = ReleaseRecord

    def add(self, task: str, version: int, created_s: float) -> int:
        """Add a release whose manifest is still empty, and return its number, which is never used again."""
        values = {"task": task, "version": version, "created_s": created_s, "manifest": b"", "signatures": ()}
        (number,) = self._connection.execute(insert(self.table).values(**values)).inserted_primary_key or (0,)
        return int(number)

    def describe(self, release: int, manifest: bytes) -> None:
        """Store the manifest that is to be signed."""
        self._update({"release": release}, manifest=manifest)

    def sign(self, release: int, signatures: tuple[Signature, ...]) -> None:
        """Replace the release's signatures by ``signatures``."""
        self._update({"release": release}, signatures=signatures)

    def get(self, release: int) -> ReleaseRecord | None:
        """The release with this number, or ``None`` if there is none."""
        return self._one(release=release)

    def page(self, most: int, after: int) -> tuple[ReleaseRecord, ...]:
        """The first ``most`` releases whose numbers are above ``after``."""
        return self._some(most, "release", after)

    def of_task(self, task: str) -> tuple[ReleaseRecord, ...]:
        """Every release of a task, oldest first."""
        return self._all("release", task=task)

    def newest_first(self, task: str | None, most: int, skipped: int = 0) -> tuple[ReleaseRecord, ...]:
        """At most ``most`` releases of a task, or of all, newest first, after skipping ``skipped``."""
        found = select(self.table).where(self._is_of(task)).order_by(self.table.c.release.desc())
        return self._found(found.limit(most).offset(skipped))

    def count(self, task: str | None) -> int:
        """The number of releases of a task, or of all."""
        found = select(func.count()).select_from(self.table).where(self._is_of(task))
        return self._connection.execute(found).scalar_one()

    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that have a release, sorted."""
        column = self.table.c.task
        return tuple(self._connection.execute(select(column).distinct().order_by(column)).scalars())

    def all(self) -> tuple[ReleaseRecord, ...]:
        """Every release, oldest first."""
        return self._all("release")

    def _is_of(self, task: str | None) -> ColumnElement[bool]:
        return true() if task is None else self.table.c.task == task


class Rollouts(Repository[RolloutRecord]):
    """Rollouts by their number, which always rises."""

    table = tables.rollouts
    record = RolloutRecord

    def add(self, release: int, task: str, plan: Plan, created_s: float) -> RolloutRecord:
        """Add a rollout, which is running and has its first stage open."""
        status = RolloutStatus.RUNNING
        values = {"release": release, "task": task, "plan": plan, "status": status, "stage": 0, "created_s": created_s}
        (number,) = self._connection.execute(insert(self.table).values(**values)).inserted_primary_key or (0,)
        return RolloutRecord(int(number), release, task, plan, status, 0, created_s)

    def set_status(self, rollout: int, status: RolloutStatus) -> None:
        """Set the rollout's status."""
        self._update({"rollout": rollout}, status=status)

    def set_stage(self, rollout: int, stage: int) -> None:
        """Set the last stage that is open."""
        self._update({"rollout": rollout}, stage=stage)

    def get(self, rollout: int) -> RolloutRecord | None:
        """The rollout with this number, or ``None`` if there is none."""
        return self._one(rollout=rollout)

    def page(self, most: int, after: int) -> tuple[RolloutRecord, ...]:
        """The first ``most`` rollouts whose numbers are above ``after``."""
        return self._some(most, "rollout", after)

    def latest(self, task: str) -> RolloutRecord | None:
        """The newest of a task."""
        return self._last("rollout", task=task)

    def newest_ones(self) -> tuple[RolloutRecord, ...]:
        """The newest of each task."""
        newest = select(func.max(self.table.c.rollout)).group_by(self.table.c.task)
        return self._found(select(self.table).where(self.table.c.rollout.in_(newest)))

    def of_releases(self, releases: Collection[int]) -> tuple[RolloutRecord, ...]:
        """Every rollout of these, oldest first."""
        columns = self.table.c
        return self._found(select(self.table).where(columns.release.in_(releases)).order_by(columns.rollout))

    def all(self) -> tuple[RolloutRecord, ...]:
        """Every rollout, oldest first."""
        return self._all("rollout")


class Assignments(Repository[AssignmentRecord]):
    """Assignments by their number, which always rises."""

    table = tables.assignments
    record = AssignmentRecord

    def add(self, assignment: AssignmentRecord) -> AssignmentRecord:
        """Add an assignment under the next number, whatever number ``assignment`` has; numbers are never used again."""
        values = {name: value for name, value in _values(assignment).items() if name != "number"}
        (number,) = self._connection.execute(insert(self.table).values(**values)).inserted_primary_key or (0,)
        return replace(assignment, number=int(number))

    def stands(self, number: int, status: AssignmentStatus, reason: str, changed_s: float) -> None:
        """Set an assignment's status, with the reason and the time of the change."""
        self._update({"number": number}, status=status, reason=reason, changed_s=changed_s)

    def reported(self, number: int, report: ReleaseReport) -> None:
        """Store the device's latest report on an assignment."""
        self._update({"number": number}, report=report)

    def get(self, number: int) -> AssignmentRecord | None:
        """The assignment with this number, or ``None`` if there is none."""
        return self._one(number=number)

    def page(self, rollout: int, most: int, after: int) -> tuple[AssignmentRecord, ...]:
        """The first ``most`` assignments of a rollout whose numbers are above ``after``."""
        return self._some(most, "number", after, rollout=rollout)

    def page_of_task(self, task: str, most: int, after: int) -> tuple[AssignmentRecord, ...]:
        """The first ``most`` assignments of a task whose numbers are above ``after``."""
        return self._some(most, "number", after, task=task)

    def of_rollout(self, rollout: int) -> tuple[AssignmentRecord, ...]:
        """Every assignment of a rollout, oldest first."""
        return self._all("number", rollout=rollout)

    def standing(
        self, rollout: int, status: AssignmentStatus | None, most: int, skipped: int = 0
    ) -> tuple[AssignmentRecord, ...]:
        """A rollout's assignments with this status, or all if ``None``, by stage and device.

        At most ``most`` are returned, after skipping ``skipped``.
        """
        columns = self.table.c
        is_wanted = true() if status is None else columns.status == status
        found = select(self.table).where(columns.rollout == rollout, is_wanted).order_by(columns.stage, columns.device)
        return self._found(found.limit(most).offset(skipped))

    def by_stage(self, rollout: int) -> Mapping[tuple[int, AssignmentStatus], int]:
        """The number of a rollout's devices by stage and status; combinations without devices are missing."""
        columns = self.table.c
        counted = (
            select(columns.stage, columns.status, func.count())
            .where(columns.rollout == rollout)
            .group_by(columns.stage, columns.status)
        )
        return {(row[0], row[1]): row[2] for row in self._connection.execute(counted)}

    def standings(self, rollout: int) -> Mapping[AssignmentStatus, int]:
        """The number of a rollout's devices by status, with 0 for a status that no device has."""
        found = self.by_stage(rollout).items()
        return {each: sum(count for (_, status), count in found if status is each) for each in AssignmentStatus}

    def of_task(self, task: str) -> tuple[AssignmentRecord, ...]:
        """Every assignment of a task, oldest first."""
        return self._all("number", task=task)

    def of_device(self, device: str) -> tuple[AssignmentRecord, ...]:
        """A device's newest assignment of each task, newest first."""
        newest = self._newest().where(self.table.c.device == device).subquery()
        found = select(self.table).join(newest, self.table.c.number == newest.c.number)
        return self._found(found.order_by(self.table.c.number.desc()))

    def newest_of(self, task: str, most: int, skipped: int = 0) -> tuple[AssignmentRecord, ...]:
        """The newest assignment of each device of a task, by device: at most ``most``, after skipping ``skipped``."""
        newest = self._newest().where(self.table.c.task == task).subquery()
        found = select(self.table).join(newest, self.table.c.number == newest.c.number)
        page = found.order_by(self.table.c.device).limit(most).offset(skipped)
        return self._found(page)

    def running(self) -> Mapping[str, int]:
        """The release that each device runs: of its newest assignment, over all tasks, that is healthy."""
        columns = self.table.c
        newest = (
            select(func.max(columns.number)).where(columns.status == AssignmentStatus.HEALTHY).group_by(columns.device)
        )
        found = select(columns.device, columns.release).where(columns.number.in_(newest))
        return {row[0]: row[1] for row in self._connection.execute(found)}

    def tally(self, task: str) -> Mapping[AssignmentStatus, int]:
        """The number of a task's devices by the status of their newest assignment."""
        newest = self._newest().where(self.table.c.task == task).subquery()
        status = self.table.c.status
        counted = select(status, func.count()).join(newest, self.table.c.number == newest.c.number).group_by(status)
        return {row[0]: row[1] for row in self._connection.execute(counted)}

    def _newest(self) -> Select[tuple[int]]:
        columns = self.table.c
        return select(func.max(columns.number).label("number")).group_by(columns.device, columns.task)


def _values(assignment: AssignmentRecord) -> dict[str, object]:
    return {field.name: getattr(assignment, field.name) for field in fields(assignment)}
