"""Which model each device was sent for inference."""

from __future__ import annotations

from sqlalchemy import insert

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
