"""Every update that got a verdict, recorded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import func, select, tuple_

from coordinator.store import tables
from coordinator.store.records import UpdateRecord
from coordinator.store.repository import Repository
from edge_sdk.protocol.messages import Refusal, Verdict


class Updates(Repository[UpdateRecord]):
    """Updates by id; a device has one slot per round."""

    table = tables.updates
    record = UpdateRecord

    def add(self, update: UpdateRecord) -> UpdateRecord:
        """Record an update and return the record that counts.

        If the id is known, that is the earlier record, and nothing changes. If another update holds the device's slot
        in this round, ``update`` is not recorded, and is returned with ``Verdict.REJECTED_DUPLICATE``.
        """
        known = self.get(update.update_id)
        if known is not None:
            return known
        taken = self._one(task=update.task, round=update.round, device=update.device)
        if taken is not None:
            reason = Refusal.DUPLICATE.because(
                f"round {update.round} has update {taken.update_id[:16]} of this device already"
            )
            return replace(update, verdict=Verdict.REJECTED_DUPLICATE, reason=reason)
        self._insert(update)
        return update

    def revoked(self, task: str, number: int, device: str, reason: str) -> None:
        """Reject the accepted update of a device that was revoked, so that it is not aggregated."""
        key = {"task": task, "round": number, "device": device, "verdict": Verdict.ACCEPTED}
        self._update(key, verdict=Verdict.REJECTED, reason=reason)

    def get(self, update_id: str) -> UpdateRecord | None:
        """The update with this id, or ``None`` if there is none."""
        return self._one(update_id=update_id)

    def of_round(self, task: str, number: int) -> tuple[UpdateRecord, ...]:
        """Every update of a round, by id."""
        return self._all("update_id", task=task, round=number)

    def accepted(self, task: str, number: int) -> tuple[UpdateRecord, ...]:
        """The accepted updates of a round, which are aggregated, by id."""
        return self._all("update_id", task=task, round=number, verdict=Verdict.ACCEPTED)

    def of_device(self, device: str, rounds: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], UpdateRecord]:
        """The update that a device delivered in each of ``rounds``, which are pairs of task and round number."""
        columns = self.table.c
        found = select(self.table).where(columns.device == device, tuple_(columns.task, columns.round).in_([*rounds]))
        return {(one.task, one.round): one for one in self._found(found)}

    def uploaded_bytes(self, task: str, after: int) -> Mapping[int, int]:
        """The total size in bytes of the accepted updates, for each round of a task after the round ``after``."""
        columns = self.table.c
        summed = (
            select(columns.round, func.sum(columns.size_bytes))
            .where(columns.task == task, columns.round > after, columns.verdict == Verdict.ACCEPTED)
            .group_by(columns.round)
        )
        return {number: int(total) for number, total in self._connection.execute(summed)}
