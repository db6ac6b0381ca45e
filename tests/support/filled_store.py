"""A coordinator's state folder with a fleet of many devices that have trained for a while, written at once.

Its first release has gone out by stages; the second waits for its signature.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random

import msgspec
from sqlalchemy import Table, insert

from coordinator.config import CoordinatorConfig
from coordinator.delivery.approving import approve, known_release, record_release, signatures_by
from coordinator.delivery.keys import own_key
from coordinator.delivery.roots import ensure_root
from coordinator.models.versions import Ordering, put_bytes
from coordinator.store import tables
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.plan import Plan
from coordinator.store.records import (
    AssignmentRecord,
    DeviceRecord,
    EvaluationRecord,
    OfferRecord,
    RoundRecord,
    UpdateRecord,
    VersionRecord,
)
from coordinator.store.states import AssignmentStatus, Outcome, Phase, RolloutStatus, TaskStatus
from edge_sdk.elastic.runtimes import MIB
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import (
    BlobEntry,
    Failure,
    Part,
    Recipe,
    ReleaseReport,
    Snapshot,
    TrainingReport,
    Verdict,
)
from edge_sdk.protocol.releases import Export, Precision
from edge_sdk.protocol.signing import Role
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.light_model import light_task

LAYERS, HEADS, FFN = 6, 12, 1536
TASK = "news"
STAGES = ("1%", "10%", "100%")
_WIDTHS = {"full": 1.0, "half": 0.5, "quarter": 0.25}
_PARAMETERS = 22_700_000
_TABLES = {
    DeviceRecord: tables.devices,
    VersionRecord: tables.versions,
    RoundRecord: tables.rounds,
    OfferRecord: tables.offers,
    UpdateRecord: tables.updates,
    EvaluationRecord: tables.evaluations,
    AssignmentRecord: tables.assignments,
}
_REPORT = TrainingReport(
    samples=120,
    steps=8,
    loss_first=1.2,
    loss_last=0.4,
    seconds=41.0,
    peak_memory_bytes=150 * MIB,
    downloaded_bytes=40 * MIB,
    uploaded_bytes=21 * MIB,
)


@dataclass(frozen=True)
class Kind:
    """A profile, what its devices spare, and how many heads they train."""

    profile: str
    total_mib: int
    training_mib: int
    heads: int
    has_battery: bool = False

    @property
    def submodel(self) -> Submodel:
        return submodel_of(self.heads)


KINDS = (
    Kind("jetson-orin-nano-8gb", 7620, 4096, 12),
    Kind("industrial-gateway", 3840, 1024, 9),
    Kind("raspberry-pi-4-4gb", 3790, 512, 7),
    Kind("android-mid-range", 5700, 400, 5, has_battery=True),
    Kind("raspberry-pi-zero-2-w", 427, 160, 3),
)


def submodel_of(heads: int) -> Submodel:
    """Every layer, ``heads`` heads in each and the same share of the neurons."""
    return Submodel((*range(LAYERS),), (heads,) * LAYERS, (FFN * heads // HEADS,) * LAYERS)


def fill_state(state: Path, devices: int, rounds: int) -> Store:
    """The store of a task in which ``devices`` took part ``rounds`` times; the last round still collects."""
    state.mkdir(parents=True, exist_ok=True)
    store = open_store(state)
    history = _History(devices, rounds, time.time())
    config = msgspec.json.encode(light_task(state, TASK, rounds=30))
    ensure_root(store, state, history.now_s)
    with store.transaction() as tx:
        tx.tasks.add(TASK, config, history.now_s - 3600)
        tx.tasks.set_status(TASK, TaskStatus.RUNNING)
    _release_twice(store, state, history.now_s)
    records: dict[Table, list[dict[str, object]]] = {}
    for record in history.records(_model(state)):
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        records.setdefault(_TABLES[type(record)], []).append(values)
    with store._connection(read_only=False) as connection:
        for table, rows in records.items():
            connection.execute(insert(table), rows)
    return store


def _release_twice(store: Store, state: Path, now_s: float) -> None:
    recipe = Recipe(learning_rate=1e-3, batch_size=4, epochs=1, max_tokens=8)
    with store.transaction() as tx:
        for version in (0, 1):
            release = record_release(
                tx,
                TASK,
                (version, f"{version:064}"),
                [_export(kind) for kind in KINDS],
                recipe,
                labels=("negative", "positive"),
                fleet="default",
                groups=(),
                now_s=now_s - 600,
                days=365,
            )
        approve(tx, 1, signatures_by(known_release(tx, 1), [own_key(state, Role.RELEASE)]), now_s - 500, "ann")
        rollout = tx.rollouts.add(1, TASK, Plan(stages=STAGES, success_share=0.8, error_share=0.2), now_s - 400)
        tx.rollouts.set_stage(rollout.rollout, len(STAGES) - 1)
        tx.rollouts.set_status(rollout.rollout, RolloutStatus.DONE)
        assert (release, rollout.rollout) == (2, 1)


def _export(kind: Kind) -> Export:
    """What just fits devices of this kind; the wider, the better."""
    heads = min(HEADS, kind.heads + 2)
    return Export(
        name=f"m{heads}-int8",
        submodel=submodel_of(heads),
        precision=Precision.INT8,
        opset=20,
        onnxruntime="1.17",
        parameters=_PARAMETERS * heads // HEADS,
        inference_memory_bytes=kind.training_mib * MIB // 5,
        accuracy=0.85 + 0.008 * kind.heads,
        samples=500,
        manifest=(BlobEntry(part=Part.INFERENCE_MODEL, digest="e" * 64, size_bytes=23 * MIB * heads // HEADS),),
    )


def _model(state: Path) -> BlobEntry:
    """The blob that says how large the model is."""
    blobs = BlobFolder(CoordinatorConfig(state_dir=state, broker="").blob_dir)
    layers = range(LAYERS)
    ordering = Ordering(tuple((*range(HEADS),) for _ in layers), tuple((*range(FFN),) for _ in layers), (*layers,))
    return put_bytes(blobs, Part.ORDERING, msgspec.msgpack.encode(ordering))


@dataclass(frozen=True)
class _History:
    devices: int
    rounds: int
    now_s: float

    def records(self, model: BlobEntry) -> Iterator[object]:
        fleet = {f"{kind.profile.split('-')[0]}-{index:04}": kind for index, kind in self._kinds()}
        yield from (self._device(index, name, kind) for index, (name, kind) in enumerate(fleet.items()))
        for number in range(self.rounds):
            yield VersionRecord(TASK, number, f"{number:064}", (model,), self._opened_s(number) + 95)
            yield from (_evaluation(number, width, share) for width, share in _WIDTHS.items())
        for number in range(1, self.rounds + 1):
            yield self._round(number)
            for index, (name, kind) in enumerate(fleet.items()):
                yield from self._answer(number, index, name, kind)
        yield from (self._assigned(index, name, kind) for index, (name, kind) in enumerate(fleet.items(), start=1))

    def _kinds(self) -> Iterator[tuple[int, Kind]]:
        return ((index, KINDS[index % len(KINDS)]) for index in range(self.devices))

    def _opened_s(self, number: int) -> float:
        return self.now_s - 60 - 120 * (self.rounds - number)

    def _device(self, index: int, name: str, kind: Kind) -> DeviceRecord:
        """One in seventeen is offline."""
        random, online = Random(index), index % 17 != 0
        seen_s = self.now_s - random.uniform(0, 20) - (0 if online else 7 * 3600)
        snapshot = Snapshot(
            memory_total_bytes=kind.total_mib * MIB,
            memory_available_bytes=kind.total_mib * MIB * 6 // 10,
            training_memory_bytes=kind.training_mib * MIB,
            inference_memory_bytes=kind.training_mib * MIB // 4,
            threads=4,
            battery_share=random.uniform(0.3, 1) if kind.has_battery else None,
            charging=random.random() < 0.5 if kind.has_battery else None,
            gflops=random.uniform(3, 60),
            link_bytes_per_s=random.uniform(1e5, 2e6),
        )
        group = "field" if kind.has_battery else "default"
        return DeviceRecord(name, kind.profile, 1, online, snapshot, 1.0, seen_s, group)

    def _round(self, number: int) -> RoundRecord:
        at_s, is_open = self._opened_s(number), number == self.rounds
        phase = Phase.COLLECTING if is_open else Phase.CLOSED
        closed_s = None if is_open else at_s + 95
        return RoundRecord(TASK, number, "b" * 64, phase, self.devices // 2 or 1, at_s, at_s + 600, closed_s)

    def _answer(self, number: int, index: int, name: str, kind: Kind) -> Iterator[object]:
        """One in forty fails, one in forty does not answer; a third still works on the open round."""
        draw, at_s = (index + 3 * number) % 40, self._opened_s(number)
        outcome = Outcome.FAILED if draw == 0 else Outcome.UPDATED
        if draw == 1 or (number == self.rounds and draw % 3 == 0):
            outcome = Outcome.OFFERED
        is_over = outcome is not Outcome.OFFERED
        yield OfferRecord(
            TASK,
            number,
            name,
            kind.submodel,
            kind.training_mib * MIB * 3 // 5,
            at_s,
            outcome,
            Failure.OUT_OF_MEMORY if outcome is Outcome.FAILED else None,
            "at step 3" if outcome is Outcome.FAILED else "",
            _REPORT.peak_memory_bytes if is_over else None,
            at_s + 70 if is_over else None,
            int(_PARAMETERS * (0.5 + 0.5 * kind.heads / HEADS)),
        )
        if outcome is Outcome.UPDATED:
            update = f"{number}-{name}".encode().hex().ljust(64, "0")
            yield UpdateRecord(
                update, TASK, number, name, "d" * 64, 21 * MIB, 120.0, _REPORT, Verdict.ACCEPTED, "", at_s + 70
            )

    def _assigned(self, number: int, device: str, kind: Kind) -> AssignmentRecord:
        """One in nine has not said yet how its model does, one in twenty-five went back."""
        report = ReleaseReport(release=1, task=TASK, healthy=True, samples=24, accuracy=0.917, latency_ms=18.0)
        status, reason, told = AssignmentStatus.HEALTHY, "", report
        if number % 9 == 0:
            status, told = AssignmentStatus.SENT, None
        elif number % 25 == 0:
            status, reason = AssignmentStatus.ROLLED_BACK, "an example takes 310 ms, more than 250"
        stage = 0 if number <= self.devices / 100 else 1 if number <= self.devices / 10 else 2
        export = _export(kind)
        return AssignmentRecord(
            number,
            1,
            1,
            TASK,
            device,
            stage,
            export.name,
            export.submodel,
            export.manifest,
            export.parameters,
            status,
            reason,
            told,
            self.now_s - 300,
        )


def _evaluation(number: int, width: str, share: float) -> EvaluationRecord:
    accuracy = 0.955 - 0.04 * (1 - share) - (0.65 - 0.16 * share) * 0.6**number
    parameters = int(_PARAMETERS * (0.55 + 0.45 * share))
    return EvaluationRecord(TASK, number, width, parameters, accuracy, 1.6 * 0.7**number, 500)
