"""From the store to the demo's outcome: every figure shown was recorded by the service, none by the demo."""

from __future__ import annotations

from coordinator.demo.outcome import DeviceRow, RoundRow, TaskOutcome
from coordinator.store.database import Store, Transaction
from coordinator.store.records import DeviceRecord
from coordinator.store.states import Phase
from edge_sdk.elastic.submodel import Submodel


def task_outcome(store: Store, task: str, title: str) -> TaskOutcome:
    """The closed rounds of a task."""
    with store.reading() as tx:
        rounds = [known for known in tx.rounds.all(task) if known.phase is Phase.CLOSED]
        before = _accuracy(tx, task, 0)
        return TaskOutcome(title, before, tuple(_round_row(tx, task, known.number) for known in rounds))


def device_rows(store: Store, task: str) -> tuple[DeviceRow, ...]:
    """One row a device, largest first."""
    with store.reading() as tx:
        whole = next((found.parameters for found in tx.evaluations.all(task) if found.width == "full"), 1)
        rows = [_device_row(tx, task, known, whole) for known in tx.devices.all()]
    return tuple(sorted(rows, key=lambda row: (-(row.parameters or 0), row.device)))


def _round_row(tx: Transaction, task: str, number: int) -> RoundRow:
    updates = tx.updates.accepted(task, number)
    record, version = tx.rounds.get(task, number), tx.versions.get(task, number)
    moved = sum(update.report.downloaded_bytes + update.report.uploaded_bytes for update in updates)
    ended_s = None if version is None else version.created_s
    return RoundRow(
        number,
        _accuracy(tx, task, number),
        len(updates),
        moved,
        0.0 if record is None or ended_s is None else ended_s - record.opened_s,
    )


def _device_row(tx: Transaction, task: str, known: DeviceRecord, whole: int) -> DeviceRow:
    offers = tx.offers.of_device(task, known.id)
    last = offers[-1] if offers else None
    reports = [
        update.report
        for offer in offers
        for update in tx.updates.accepted(task, offer.round)
        if update.device == known.id
    ]
    released = next((found for found in tx.assignments.of_task(task) if found.device == known.id), None)
    report = None if released is None else released.report
    healthy = released is not None and report is not None and report.healthy
    return DeviceRow(
        device=known.id,
        profile=known.profile,
        trained=None if last is None else _width(last.submodel),
        parameters=None if last is None else last.parameters,
        share_of_full=None if last is None else last.parameters / whole,
        predicted_memory_bytes=None if last is None else last.predicted_memory_bytes,
        measured_memory_bytes=max((seen.peak_memory_bytes for seen in reports), default=None),
        downloaded_bytes=sum(seen.downloaded_bytes for seen in reports),
        uploaded_bytes=sum(seen.uploaded_bytes for seen in reports),
        seconds=sum(seen.seconds for seen in reports),
        failures=tuple(f"round {o.round}: {o.failure.value}" for o in offers if o.failure is not None),
        inference=_width(released.submodel) if released is not None and healthy else None,
        inference_share=released.parameters / whole if released is not None and healthy else None,
        accuracy=None if report is None else report.accuracy,
        samples=0 if report is None else report.samples,
        latency_ms=None if report is None else report.latency_ms,
    )


def _accuracy(tx: Transaction, task: str, number: int) -> dict[str, float]:
    return {found.width: found.accuracy for found in tx.evaluations.of_round(task, number)}


def _width(submodel: Submodel) -> str:
    return f"{max(submodel.heads)}/{max(submodel.ffn)}"
