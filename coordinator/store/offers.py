"""Which device was asked to train which submodel, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import and_, func, select

from coordinator.store import tables
from coordinator.store.records import OfferRecord
from coordinator.store.repository import Repository
from coordinator.store.states import Outcome
from edge_sdk.protocol.messages import Failure


class Offers(Repository[OfferRecord]):
    """Offers by task, round and device."""

    table = tables.offers
    record = OfferRecord

    def add(self, offer: OfferRecord) -> None:
        """Add an offer; a device gets at most one per round."""
        self._insert(offer)

    def updated(self, task: str, number: int, device: str, now_s: float, peak_memory_bytes: int) -> None:
        """Record that the device's update was accepted."""
        self._update(
            {"task": task, "round": number, "device": device},
            outcome=Outcome.UPDATED,
            failure=None,
            peak_memory_bytes=peak_memory_bytes,
            answered_s=now_s,
        )

    def failed(
        self,
        task: str,
        number: int,
        device: str,
        now_s: float,
        *,
        outcome: Outcome = Outcome.FAILED,
        failure: Failure | None = None,
        detail: str = "",
        peak_memory_bytes: int | None = None,
    ) -> None:
        """Record that the offer has brought no update so far; an offer that has brought its update does not change."""
        known = self.get(task, number, device)
        if known is None or known.outcome is Outcome.UPDATED:
            return
        self._update(
            {"task": task, "round": number, "device": device},
            outcome=outcome,
            failure=failure,
            detail=detail,
            peak_memory_bytes=peak_memory_bytes,
            answered_s=now_s,
        )

    def revoked(self, task: str, number: int, device: str, now_s: float, detail: str) -> None:
        """Record that the device was revoked, so that its offer has failed even if an update had come."""
        self._update(
            {"task": task, "round": number, "device": device},
            outcome=Outcome.FAILED,
            failure=None,
            detail=detail,
            answered_s=now_s,
        )

    def reopened(self, task: str, number: int, device: str) -> OfferRecord | None:
        """The device's offer, open again if the device had paused; any other offer is returned unchanged.

        ``None`` if the device was not asked in this round.
        """
        known = self.get(task, number, device)
        if known is None or known.outcome is not Outcome.PAUSED:
            return known
        self._update({"task": task, "round": number, "device": device}, outcome=Outcome.OFFERED, answered_s=None)
        return replace(known, outcome=Outcome.OFFERED, answered_s=None)

    def get(self, task: str, number: int, device: str) -> OfferRecord | None:
        """One offer, or ``None`` if the device was not asked in this round."""
        return self._one(task=task, round=number, device=device)

    def of_round(self, task: str, number: int) -> tuple[OfferRecord, ...]:
        """Every offer of a round, by device."""
        return self._all("device", task=task, round=number)

    def of_device(self, task: str, device: str) -> tuple[OfferRecord, ...]:
        """Every offer that a device has had in a task, oldest first."""
        return self._all("round", task=task, device=device)

    def newest_of(self, devices: Sequence[str]) -> Mapping[str, OfferRecord]:
        """The newest offer over all tasks of each of ``devices``; a device that never had one is missing."""
        columns = self.table.c
        newest = (
            select(columns.device, func.max(columns.offered_s).label("at_s"))
            .where(columns.device.in_(devices))
            .group_by(columns.device)
            .subquery()
        )
        is_newest = and_(columns.device == newest.c.device, columns.offered_s == newest.c.at_s)
        found = select(self.table).join(newest, is_newest).order_by(columns.task, columns.round)
        return {offer.device: offer for offer in self._found(found)}

    def history(self, device: str, most: int, skipped: int = 0) -> tuple[OfferRecord, ...]:
        """At most ``most`` offers of a device over all tasks, newest first, after skipping ``skipped``."""
        columns = self.table.c
        order = (columns.offered_s.desc(), columns.task, columns.round)
        found = select(self.table).where(columns.device == device).order_by(*order).limit(most).offset(skipped)
        return self._found(found)

    def tally(self, task: str, after: int) -> Mapping[int, Mapping[Outcome, int]]:
        """The number of offers by outcome, for each round of a task after the round ``after``."""
        columns = self.table.c
        counted = (
            select(columns.round, columns.outcome, func.count())
            .where(columns.task == task, columns.round > after)
            .group_by(columns.round, columns.outcome)
        )
        tally: dict[int, dict[Outcome, int]] = {}
        for number, outcome, count in self._connection.execute(counted):
            tally.setdefault(number, {})[outcome] = count
        return tally
