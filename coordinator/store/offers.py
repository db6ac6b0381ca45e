"""Who was asked to train what, and what came of it."""

from __future__ import annotations

from dataclasses import replace

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
        """A new offer; a device gets one a round."""
        self._insert(offer)

    def updated(self, task: str, number: int, device: str, now_s: float, peak_memory_bytes: int) -> None:
        """The device's update was accepted."""
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
        """No update came of it, so far; an offer that has brought its update stays as it is."""
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

    def reopened(self, task: str, number: int, device: str) -> OfferRecord | None:
        """What a device was asked, where a pause of it ends: any other offer stays as it is."""
        known = self.get(task, number, device)
        if known is None or known.outcome is not Outcome.PAUSED:
            return known
        self._update({"task": task, "round": number, "device": device}, outcome=Outcome.OFFERED, answered_s=None)
        return replace(known, outcome=Outcome.OFFERED, answered_s=None)

    def get(self, task: str, number: int, device: str) -> OfferRecord | None:
        """One offer, ``None`` where the device was not asked in this round."""
        return self._one(task=task, round=number, device=device)

    def of_round(self, task: str, number: int) -> tuple[OfferRecord, ...]:
        """Every offer of a round, by device."""
        return self._all("device", task=task, round=number)

    def of_device(self, task: str, device: str) -> tuple[OfferRecord, ...]:
        """Every offer that a device has had in a task, oldest first."""
        return self._all("round", task=task, device=device)
