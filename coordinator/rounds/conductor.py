"""Runs one task from its preparation to its release: makes offers to devices, and acts on their answers.

    PREPARING ─▶ GATHERING ─▶ COLLECTING ─▶ CLOSING ─▶ GATHERING … ─▶ RELEASING ─▶ DONE
       model       devices      updates     aggregate                  per device
       ready       ask          come in     and evaluate               its largest

:mod:`coordinator.rounds.machine` and the planner decide; every decision is stored before a device is told. Heavy work
runs beside the loop and returns as a callback. Restarted after a crash at any point, a conductor continues from the
store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from coordinator.aggregation.coverage import UpdateSource
from coordinator.config import Participation, TaskConfig
from coordinator.delivery.desk import RolloutDesk
from coordinator.delivery.releases import TaskRelease
from coordinator.fleet.revocation import drop_from_round
from coordinator.models.versions import ModelVersion
from coordinator.planning.budget import Pace, estimated_pace, shrunk, training_budget
from coordinator.planning.planner import Planner, TaskCosts, TrainingPlan, placed
from coordinator.planning.selection import drawn_from
from coordinator.resources import Resources
from coordinator.rounds.candidates import Candidates
from coordinator.rounds.closing import is_sound, keep_version, sources_of, still_count
from coordinator.rounds.failing import why_abandoned
from coordinator.rounds.intake import Intake
from coordinator.rounds.machine import (
    MAX_ABANDONED,
    DeviceFailed,
    DeviceLost,
    DevicePaused,
    DeviceRevoked,
    Event,
    Offered,
    RoundState,
    Tick,
    UpdateAccepted,
    step,
)
from coordinator.rounds.offering import offer_of, record_of
from coordinator.rounds.pace import paces_of_round
from coordinator.rounds.recovery import load_round
from coordinator.store.database import Transaction
from coordinator.store.records import DeviceRecord, OfferRecord, RoundRecord
from coordinator.store.states import Outcome, Phase, TaskStatus
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import full
from edge_sdk.errors import ModelFormatError
from edge_sdk.logs import because
from edge_sdk.protocol.messages import Declined, Failure, Ready, Snapshot, UpdateReady

if TYPE_CHECKING:
    from coordinator.models.run import Run, WidthResult

_log = logging.getLogger(__name__)
_REMIND_AFTER_S = 60.0


class Stage(str, Enum):
    """Where a task is; see the diagram above."""

    PREPARING = "preparing"
    GATHERING = "gathering"
    COLLECTING = "collecting"
    CLOSING = "closing"
    RELEASING = "releasing"
    DONE = "done"


class Conductor:
    """Drives one task. Every method is called from the service's loop.

    Deadlines are on a monotonic clock; the wall clock, which may jump, is used for recorded times only.
    """

    def __init__(self, config: TaskConfig, resources: Resources, candidates: Candidates, desk: RolloutDesk) -> None:
        self.config = config
        self.stage = Stage.PREPARING
        self.is_held = False
        self._about: dict[str, object] = {"task": config.name}
        self._resources = resources
        self._candidates = candidates
        self._desk = desk
        self._left_out: set[str] = set()
        self._round: RoundState | None = None
        self._paces: dict[str, Pace] = {}
        self._paced = 0
        self._gathering_since_s = 0.0
        self._reminded_s = -_REMIND_AFTER_S

    def start(self, status: TaskStatus) -> None:
        """Prepare the run of the task, or continue what the store has of it."""
        resources, config = self._resources, self.config
        self.is_held = status is TaskStatus.PAUSED
        if status is TaskStatus.PENDING:
            self._begin()
        with resources.store.reading() as tx:
            latest = tx.versions.latest(config.name)
        known = None if latest is None else (latest.number, latest.blobs)

        def work() -> tuple[Run, ModelVersion, list[WidthResult]]:
            from coordinator.models.run import prepare  # noqa: PLC0415 - torch takes seconds; the loop hears devices

            run, version = prepare(
                config,
                resources.blobs,
                resources.settings.template_cache,
                threads=resources.settings.threads,
                say=partial(_log.info, extra=self._about),
                known=known,
            )
            return run, version, [] if known else run.evaluate(version)

        resources.submit(work, lambda made: self._prepared(*made), self._fail)

    def _begin(self) -> None:
        with self._resources.store.transaction() as tx:
            tx.tasks.start(self.config.name, len(tx.rounds.all(self.config.name)))

    def _prepared(self, run: Run, version: ModelVersion, results: list[WidthResult]) -> None:
        self._run, self._version = run, version
        config, ranking = run.config, version.ordering.layer_ranking
        costs = TaskCosts(run.costs, config.part, config.recipe, config.nesting, config.encoding)
        self._planner = Planner(costs, config.space, ranking)
        self._intake = Intake(run, self._resources)
        self._release = TaskRelease(run, *self._planner.of(Runtime.ONNX), self._resources, self._desk, self._fail)
        if results:
            if not is_sound(results):
                raise ModelFormatError(
                    f"{config.model_dir} cannot be trained: its loss is not a number; use another model"
                )
            with self._resources.store.transaction() as tx:
                keep_version(tx, config.name, version, results)
        self._go_on()

    def _go_on(self) -> None:
        """Enter the next stage, which follows from the store alone: so a restart is harmless."""
        name = self.config.name
        with self._resources.store.reading() as tx:
            self._round = load_round(tx, name, wall_s=time.time(), steady_s=time.monotonic())
            rounds, task = tx.rounds.all(name), tx.tasks.get(name)
            self._learn_paces(tx, rounds)
        closed = [known.number for known in rounds if known.phase is Phase.CLOSED]
        forgiven = 0 if task is None else task.forgiven
        ended = [known for known in rounds[forgiven:] if known.phase is not Phase.COLLECTING]
        abandoned = [*takewhile(lambda known: known.phase is Phase.ABANDONED, reversed(ended))]
        self._gathering_since_s = time.monotonic()
        if self._round is not None:
            self.stage = Stage.COLLECTING
        elif closed and closed[-1] > self._version.number:
            self._close(closed[-1])
        elif len(closed) < self.config.rounds and len(abandoned) < MAX_ABANDONED:
            self.stage = Stage.GATHERING
        elif len(closed) == self.config.rounds and self.config.release:
            self.stage = Stage.RELEASING
            self._release.open(self._version)
        elif len(closed) == self.config.rounds:
            self._end(TaskStatus.DONE)
        else:
            with self._resources.store.reading() as tx:
                reason = why_abandoned(tx, abandoned)
            self._fail(reason)

    def _learn_paces(self, tx: Transaction, rounds: Sequence[RoundRecord]) -> None:
        """Update the devices' paces from the rounds that have ended since."""
        costs, _ = self._planner.of(Runtime.ONNX)
        for known in rounds[self._paced :]:
            if known.phase is not Phase.COLLECTING:
                self._paces |= paces_of_round(tx, known, costs, self._paces)
                self._paced = known.number

    def _fail(self, reason: str) -> None:
        """Record that the task failed, and why, unless it was stopped before."""
        if self.stage is not Stage.DONE:
            self._end(TaskStatus.FAILED, reason)

    def _end(self, status: TaskStatus, failure: str | None = None) -> None:
        with self._resources.store.transaction() as tx:
            tx.tasks.set_status(self.config.name, status, failure)
        self._leave(status)

    def _leave(self, status: TaskStatus) -> None:
        """Nothing more is done for the task; what its rounds were trained from is not needed any more."""
        self.stage = Stage.DONE
        _log.info("task %s is %s", self.config.name, status.value, extra=self._about)
        self._resources.sweep()

    def obey(self, status: TaskStatus) -> None:
        """Follow the task's status in the store, which an operator may have changed.

        A task that has ended, and was started again at once, is begun anew by the agenda.
        """
        self.is_held = status is TaskStatus.PAUSED
        if status is TaskStatus.STOPPED:
            self._stop()
        elif status is TaskStatus.PENDING and self.stage is not Stage.DONE:
            self._begin()

    def _stop(self) -> None:
        """End the task once running work is done; an open round closes with the updates that it has."""
        if self._round is not None and self.stage is Stage.COLLECTING:
            with self._resources.store.transaction() as tx:
                self._advance(tx, Tick(self._round.deadline_s))
            self._close_if_decided()
        if self.stage in {Stage.GATHERING, Stage.RELEASING}:
            self._leave(TaskStatus.STOPPED)

    # -- what devices say

    @property
    def _is_prepared(self) -> bool:
        """Whether the model has been prepared: a task that is over may have failed before that."""
        return self.stage not in {Stage.PREPARING, Stage.DONE}

    def refusal(self, known: DeviceRecord, ready: Ready) -> str | None:
        """Why a device that asks for work cannot take part in this task; ``None`` if it can."""
        name = self.config.name
        if ready.tasks and name not in ready.tasks:
            return f"task {name} runs now, and this device has no examples of it"
        if not self.config.targets.include(known.id, known.profile, known.group):
            return f"task {name} runs now, and is for other devices"
        unfit = self._unfit(ready)
        if unfit is None:
            self._left_out.discard(known.id)
            return None
        if known.id not in self._left_out:
            _log.warning(
                "%s cannot take part in task %s: %s", known.id, name, unfit, extra=self._about | {"device": known.id}
            )
        self._left_out.add(known.id)
        return f"task {name}: {unfit}"

    def _unfit(self, ready: Ready) -> str | None:
        """Why the device's examples or runtime do not suit the task; known in full once the model is loaded."""
        run = self._run if self._is_prepared else None
        suits = None if run is None else run.foundation.architecture.task
        unfit = self.config.data.refusal(ready.holding_for(self.config.name), suits)
        if unfit is not None or run is None or ready.snapshot.runtime in run.runtimes:
            return unfit
        able = " or ".join(known.value for known in run.runtimes)
        return f"it cannot be trained on {ready.snapshot.runtime.value}; run the agent with --runtime {able}"

    def offer_again(self, device: str, snapshot: Snapshot) -> bool:
        """Send a device its open offer again; returns whether there was one that its runtime can take."""
        if self._round is None or self._round.offers.get(device) not in {Outcome.OFFERED, Outcome.PAUSED}:
            return False
        if snapshot.runtime not in self._run.runtimes:
            return False
        with self._resources.store.transaction(durable=False) as tx:
            offered = tx.offers.reopened(self.config.name, self._round.number, device)
            self._advance(tx, Offered(device))
        if offered is not None:
            self._send_offer(offered, snapshot.runtime)
        return offered is not None

    def device_declined(self, device: str, declined: Declined) -> None:
        """A device declines its offer; one that ran out of memory gets smaller submodels from now on."""
        if self._round is None or declined.round != self._round.number:
            return
        about = self._about | {"round": declined.round, "device": device}
        failure = because(declined.failure.value, declined.detail)
        _log.warning("%s declined or failed in round %d: %s", device, declined.round, failure, extra=about)
        is_paused = declined.failure is Failure.POLICY
        with self._resources.store.transaction(durable=not is_paused) as tx:
            if self._round.offers.get(device) is Outcome.OFFERED and declined.failure is Failure.OUT_OF_MEMORY:
                known = tx.devices.get(device)
                tx.devices.set_memory_factor(device, shrunk(known.memory_factor if known else 1.0))
            tx.offers.failed(
                self.config.name,
                declined.round,
                device,
                time.time(),
                outcome=Outcome.PAUSED if is_paused else Outcome.FAILED,
                failure=declined.failure,
                detail=declined.detail,
                peak_memory_bytes=declined.peak_memory_bytes,
            )
            self._advance(tx, DevicePaused(device) if is_paused else DeviceFailed(device))
        self._close_if_decided()

    def update_ready(self, device: str, update: UpdateReady) -> None:
        """A device has announced an update: pull it, or send the receipt that the device missed."""
        if self._is_prepared:
            self._intake.announced(device, update, self._round)

    def blob_fetched(self, device: str, digest: str) -> None:
        """An update has arrived completely: check it, make it durable, and only then send the receipt."""
        update = self._intake.arrived(device, digest) if self._is_prepared else None
        if update is None or self._round is None:
            return
        with self._resources.store.transaction() as tx:
            receipt, admitted = self._intake.judge(tx, device, update, self._version, self._round.number)
            if admitted is not None:
                self._advance(tx, UpdateAccepted(device) if admitted else DeviceFailed(device))
        self._resources.send(device, receipt)
        self._close_if_decided()

    def drop(self, revoked: AbstractSet[str]) -> None:
        """These devices are revoked: their offers fail, and their updates in the open round do not count."""
        if self._round is None or self._round.offers.keys().isdisjoint(revoked):
            return
        number, outcomes = self._round.number, self._round.offers
        devices = [device for device in revoked if outcomes.get(device, Outcome.FAILED) is not Outcome.FAILED]
        for device in devices:
            about = self._about | {"round": number, "device": device}
            _log.warning("round %d continues without %s, which is revoked", number, device, extra=about)
            self._intake.forget(device)
            with self._resources.store.transaction() as tx:
                drop_from_round(tx, self.config.name, number, device, time.time())
                self._advance(tx, DeviceRevoked(device))
        if devices:
            self._close_if_decided()

    # -- rounds

    def tick(self, gone_s: Mapping[str, float]) -> None:
        """Let time pass; ``gone_s`` says for how long each offline device has been offline, in seconds."""
        now_s = time.monotonic()
        if self.stage is Stage.GATHERING and self._may_open():
            self._open_round(now_s)
        elif self.stage is Stage.GATHERING:
            self._gathering_since_s = now_s
        elif self._round is not None and self.stage is Stage.COLLECTING:
            with self._resources.store.transaction() as tx:
                for device, absence_s in gone_s.items():
                    if absence_s > self._resources.settings.lost_after_s:
                        self._lose(tx, device)
                self._advance(tx, Tick(now_s))
            self._close_if_decided()
        elif self.stage is Stage.RELEASING and self._release.is_settled():
            self._end(TaskStatus.DONE)

    def _may_open(self) -> bool:
        with self._resources.store.reading() as tx:
            newest = tx.rounds.newest(self.config.name)
        opened_s = None if newest is None else newest.opened_s
        return not self.is_held and self.config.schedule.allows(time.time(), opened_s)

    def _lose(self, tx: Transaction, device: str, why: str = "offline") -> None:
        if self._round is not None and self._round.offers.get(device) is Outcome.OFFERED:
            tx.offers.failed(self.config.name, self._round.number, device, time.time(), detail=why)
            self._advance(tx, DeviceLost(device))

    def _open_round(self, now_s: float) -> None:
        waiting = self._candidates.of(self.config.name)
        fresh = {device: snapshot for device, snapshot in waiting.items() if snapshot.runtime in self._run.runtimes}
        is_late = now_s - self._gathering_since_s > self._resources.settings.gather_s
        if len(fresh) < self.config.min_devices and not is_late:
            return
        with self._resources.store.reading() as tx:
            newest = tx.rounds.newest(self.config.name)
        number = 1 if newest is None else newest.number + 1
        cohort = self._plan(fresh, number)
        if len(cohort) < self.config.quorum:
            if is_late:
                self._remind(now_s, len(fresh), len(cohort))
            return
        with self._resources.store.transaction() as tx:
            opened_s = time.time()
            deadline_s = opened_s + self.config.round_deadline_s
            base, quorum = self._version.digest, min(self.config.quorum, len(cohort))
            tx.rounds.add(RoundRecord(self.config.name, number, base, Phase.COLLECTING, quorum, opened_s, deadline_s))
            offers = [
                record_of(self._run, device, number, plan, opened_s)
                for device, plan in placed(cohort, self._run.foundation.architecture, self.config.space, number).items()
            ]
            for offer in offers:
                tx.offers.add(offer)
            self._round = load_round(tx, self.config.name, wall_s=opened_s, steady_s=now_s)
        self.stage = Stage.COLLECTING
        about = self._about | {"round": number}
        _log.info("round %d opens with %d devices", number, len(cohort), extra=about)
        if slow := ", ".join(sorted(device for device, plan in cohort.items() if plan.is_timed)):
            _log.info(
                "round %d: smaller submodels than memory allows, to meet the deadline: %s", number, slow, extra=about
            )
        self._candidates.take(cohort)
        for offer in offers:
            self._send_offer(offer, fresh[offer.device].runtime)

    def _remind(self, now_s: float, asking: int, fitting: int) -> None:
        """Log from time to time what a round that does not open is waiting for."""
        if now_s - self._reminded_s > _REMIND_AFTER_S:
            self._reminded_s = now_s
            left_out = f"; left out: {', '.join(sorted(self._left_out))}" if self._left_out else ""
            _log.warning(
                "no round opens: %d devices are needed; %d ask for work, and %d of them can train a submodel%s",
                self.config.quorum,
                asking,
                fitting,
                left_out,
                extra=self._about,
            )

    def _plan(self, fresh: Mapping[str, Snapshot], number: int) -> dict[str, TrainingPlan]:
        """The largest submodel that each device can train; devices that cannot take part are left out."""
        with self._resources.store.reading() as tx:
            factors = tx.devices.memory_factors()
        chosen = {
            device: self._planner.for_training(
                training_budget(
                    snapshot,
                    memory_factor=factors[device],
                    deadline_s=self.config.round_deadline_s,
                    pace=self._paces.get(device) or estimated_pace(snapshot, self.config.recipe),
                ),
                snapshot.runtime,
            )
            for device, snapshot in fresh.items()
            if device in factors
        }
        whole = full(self._run.foundation.architecture)
        able = {
            device: plan
            for device, plan in chosen.items()
            if plan is not None and (self.config.participation is Participation.ALL or plan.submodel == whole)
        }
        drawn = drawn_from(able, self.config.max_devices, seed=self.config.seed, round_number=number)
        return {device: able[device] for device in drawn}

    def _send_offer(self, record: OfferRecord, runtime: Runtime) -> None:
        left_s = max(0.0, (self._round.deadline_s if self._round else 0.0) - time.monotonic())
        manifest = self._resources.addressed(self._run.manifest(self._version, record.submodel, runtime))
        if not self._resources.send(record.device, offer_of(record, self._run, self._version, manifest, left_s)):
            with self._resources.store.transaction() as tx:
                self._lose(tx, record.device, "its offer is too large to be sent")

    def _advance(self, tx: Transaction, event: Event) -> None:
        """Take one step of the round; its decision is stored in one transaction with what led to it."""
        if self._round is None:
            return
        self._round = step(self._round, event)
        if self._round.phase is not Phase.COLLECTING:
            tx.rounds.decide(self.config.name, self._round.number, self._round.phase, time.time())

    def _close_if_decided(self) -> None:
        if self._round is not None and self._round.phase is not Phase.COLLECTING:
            number, phase = self._round.number, self._round.phase.value
            _log.info("round %d is %s", number, phase, extra=self._about | {"round": number})
            self._intake.stop()
            if self._round.phase is Phase.ABANDONED:
                self._resources.sweep()
            self._round = None
            self._go_on()

    def _close(self, number: int) -> None:
        """Aggregate and evaluate in a thread beside the loop; a repetition after a crash gives the same bytes."""
        self.stage = Stage.CLOSING
        run, base, blobs, name = self._run, self._version, self._resources.blobs, self.config.name
        with self._resources.store.reading() as tx:
            sources, closed = sources_of(tx, run, blobs, number), tx.rounds.get(name, number)
        if closed is not None and len(sources) < closed.quorum:
            self._abandon(number, "revoked devices leave it without a quorum")
            return

        def work() -> tuple[ModelVersion, list[WidthResult]]:
            version = run.aggregate(base, number, sources)
            return version, run.evaluate(version)

        self._resources.submit(work, lambda made: self._closed(sources, *made), self._fail)

    def _abandon(self, number: int, why: str) -> None:
        """Abandon a round that was closed: it makes no version, and the next starts from the previous one."""
        _log.warning("round %d is abandoned: %s", number, why, extra=self._about | {"round": number})
        with self._resources.store.transaction() as tx:
            tx.rounds.abandon(self.config.name, number)
        self._go_on()

    def _closed(self, sources: Sequence[UpdateSource], version: ModelVersion, results: list[WidthResult]) -> None:
        if not is_sound(results):
            self._abandon(version.number, "the loss of its model is not a number")
            return
        with self._resources.store.transaction() as tx:
            is_good = still_count(tx, self.config.name, version.number, sources)
            if is_good:
                keep_version(tx, self.config.name, version, results)
        if not is_good:
            self._close(version.number)
            return
        self._version = version
        self._resources.sweep()
        self._go_on()

    def needed(self) -> set[str]:
        """The digests of the blobs that an open round sends and receives, besides those that the store records."""
        if not self._is_prepared:
            return set()
        digests = {entry.digest for entry in self._run.tokenizer} | self._intake.coming
        return digests | (self._run.packed(self._version) if self._round is not None else set())
