"""Which model each device was sent for inference."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Select, func, insert, select

from coordinator.store import tables
from coordinator.store.records import ReleaseRecord
from coordinator.store.repository import Repository
from coordinator.store.states import ReleaseStatus
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import BlobEntry, ReleaseReport


class Releases(Repository[ReleaseRecord]):
    """Releases by their rising number."""

    table = tables.releases
    record = ReleaseRecord

    def add(
        self, task: str, device: str, submodel: Submodel, manifest: tuple[BlobEntry, ...], parameters: int = 0
    ) -> ReleaseRecord:
        """A new release with the next number; numbers rise over all tasks and are never used again."""
        values = {"task": task, "device": device, "submodel": submodel, "manifest": manifest, "parameters": parameters}
        statement = insert(self.table).values(**values, status=ReleaseStatus.SENT)
        (number,) = self._connection.execute(statement).inserted_primary_key or (0,)
        return ReleaseRecord(number, task, device, submodel, manifest, ReleaseStatus.SENT, parameters=parameters)

    def reported(self, release: int, report: ReleaseReport) -> None:
        """What the device says of it decides the status."""
        status = ReleaseStatus.INSTALLED if report.healthy else ReleaseStatus.FAILED
        self._update({"release": release}, status=status, report=report)

    def get(self, release: int) -> ReleaseRecord | None:
        """One release, ``None`` where there is none of this number."""
        return self._one(release=release)

    def latest(self, device: str) -> ReleaseRecord | None:
        """The newest release of a device, ``None`` where it never had one."""
        return self._last("release", device=device)

    def of_task(self, task: str) -> tuple[ReleaseRecord, ...]:
        """Every release of a task, oldest first."""
        return self._all("release", task=task)

    def of_device(self, device: str) -> tuple[ReleaseRecord, ...]:
        """The newest release of each task that a device was sent, newest first."""
        newest = self._newest().where(self.table.c.device == device).subquery()
        found = select(self.table).join(newest, self.table.c.release == newest.c.release)
        return self._found(found.order_by(self.table.c.release.desc()))

    def newest_of(self, task: str, most: int, skipped: int = 0) -> tuple[ReleaseRecord, ...]:
        """The newest release of each device of a task, by device: at most ``most`` after the first ``skipped``."""
        newest = self._newest().where(self.table.c.task == task).subquery()
        found = select(self.table).join(newest, self.table.c.release == newest.c.release)
        page = found.order_by(self.table.c.device).limit(most).offset(skipped)
        return self._found(page)

    def tally(self, task: str) -> Mapping[ReleaseStatus, int]:
        """In how many of a task's devices the newest release stands so."""
        newest = self._newest().where(self.table.c.task == task).subquery()
        status = self.table.c.status
        counted = select(status, func.count()).join(newest, self.table.c.release == newest.c.release).group_by(status)
        return {row[0]: row[1] for row in self._connection.execute(counted)}

    def _newest(self) -> Select[tuple[int]]:
        columns = self.table.c
        return select(func.max(columns.release).label("release")).group_by(columns.device, columns.task)
