"""Performs what :mod:`.decisions` decides: one loop around a link, a cache, an outbox and a training process.

Order matters in three places. An update is a verified blob in the cache *before* its message enters the outbox, and in
the outbox *before* it is published, so that it is sent again after any crash. A release is verified *before* any part
of it is fetched. A slot becomes current *after* its model has passed its trial on this device.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import msgspec

from edge_sdk import __version__
from edge_sdk.agent import decisions
from edge_sdk.agent.decisions import AgentState, Phase
from edge_sdk.agent.releasing import Releases, Tried
from edge_sdk.agent.sources import BlobSources
from edge_sdk.agent.tasks import OwnTasks
from edge_sdk.agent.uplink import Uplink, mqtt_transport
from edge_sdk.agent.work import Stock, Updates, job_of
from edge_sdk.config import AgentConfig
from edge_sdk.data.owned import Owned
from edge_sdk.device.machine import Machine
from edge_sdk.device.policy import Denied
from edge_sdk.disk import sole_user
from edge_sdk.errors import BrokerUnreachableError, DataFormatError, DiskFullError, RaffmError, StorageError
from edge_sdk.protocol.messages import (
    Announce,
    BlobEntry,
    BlobMessage,
    Failure,
    Hello,
    Offer,
    Offline,
    Refused,
    Release,
    ReleaseReport,
    Snapshot,
    Standing,
    Wait,
)
from edge_sdk.storage.cache import BlobCache
from edge_sdk.storage.outbox import Outbox
from edge_sdk.training.job import Failed, Finished, Progress, TrainingEvent, TrainingResult, failure_of
from edge_sdk.training.process import TrainingProcess
from edge_sdk.transport.base import BulkRoom, Incoming, LinkDown, LinkUp, Transport
from edge_sdk.transport.exchange import Fetched, Outcome
from edge_sdk.transport.web import WebArrived, WebEnded

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_KEEP_COUNT_S = 10.0  # between commits of what is counted, while a budget or a simulated battery depends on it
_KEEP_TIME_S = 600.0  # otherwise seldom, since every commit wears out a memory card


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What an agent is doing, for people and applications.

    ``step`` of ``steps``, with the ``loss`` of that step, is how far training has come. ``release`` is the newest that
    runs, 0 before the first. ``waiting_for`` says why the agent is not connected yet, asks for no work or gets none.
    """

    phase: Phase = Phase.IDLE
    connected: bool = False
    task: str | None = None
    round: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    release: int = 0
    waiting_for: str = ""


@dataclass(frozen=True, slots=True)
class TrainingSaid:
    """An event of a training process; ``offer`` distinguishes the current process from one that was given up."""

    offer: Offer
    event: TrainingEvent


class Supervisor:
    """One agent at work.

    ``examples`` are of the kinds in :mod:`edge_sdk.data.owned`; while there are none, the agent asks for no work.
    Two callbacks run on the loop's thread: ``on_model`` takes the report of each release that has been confirmed, and
    ``on_tick`` the status, every half second.
    ``make_transport(config, session)`` makes the link, whose last will contains ``session``.

    Raises the error of a profile, key, state folder or disk that cannot be used.
    """

    def __init__(
        self,
        config: AgentConfig,
        examples: Owned,
        *,
        make_transport: Callable[[AgentConfig, int], Transport] = mqtt_transport,
        on_model: Callable[[ReleaseReport], None] | None = None,
        on_tick: Callable[[AgentStatus], None] | None = None,
    ) -> None:
        self._config = config
        self._on_model, self._on_tick = on_model, on_tick
        self._training: TrainingProcess | None = None
        self._downloaded_before = 0
        self._stopping = threading.Event()
        self._is_closed = False
        self._obstacle = ""
        self._asks_for_work = True
        self._ticked_s = self._kept_s = time.monotonic()
        with ExitStack() as held:
            held.enter_context(sole_user(config.state_dir / "agent.lock", "agent"))
            self._cache = BlobCache(
                config.state_dir / "blobs", config.cache_bytes, keep_free_bytes=config.policy.min_disk_free_bytes
            )
            self._outbox = Outbox(
                config.state_dir / "outbox.sqlite",
                first_pause_s=config.resend_first_s,
                max_pause_s=config.resend_max_s,
            )
            held.callback(self._outbox.close)
            self._updates = Updates(config, self._outbox, self._cache)
            self._machine = Machine(
                config.profile,
                config.policy,
                config.state_dir,
                kept=self._outbox.number,
                runtime=config.runtime,
                threads=config.threads,
            )
            self._tasks = OwnTasks(examples, config)
            self._releases = Releases(config, self._tasks)
            self._session = int(self._outbox.number("session") or time.time() * 1000) + 1
            self._outbox.set_number("session", self._session)
            self._transport = make_transport(config, self._session)
            self._uplink = Uplink(config, self._transport, self._count_sent)
            self._blobs = BlobSources(self._cache, self._uplink.publish, self._transport, self._machine, config)
            self._stock = Stock(self._cache, self._blobs, self._updates)
            self._state = AgentState(ready_interval_s=config.ready_interval_s, answered=self._updates.last_answered())
            self._status = AgentStatus(release=self._tasks.release)
            self._held = held.pop_all()

    @property
    def status(self) -> AgentStatus:
        """What the agent is doing now."""
        return self._status

    @property
    def tasks(self) -> OwnTasks:
        """The device's tasks, each with its examples and its model; both may be used from any thread."""
        return self._tasks

    def measure(self) -> None:
        """Measure the machine's constants now, on the caller's thread; :meth:`run` would do so later, on its own.

        This multiplies matrices, and a process that forks while another of its threads does so hangs in OpenBLAS.
        """
        self._machine.measure()

    def run(self, *, waits_for_broker: bool = False) -> None:
        """Connect and work until :meth:`stop`.

        Raises ``BrokerUnreachableError`` if no broker lets it in at first, unless it ``waits_for_broker``.
        """
        try:
            self._tasks.start()
            if waits_for_broker:
                self._uplink.connect(self._stopping, self._no_broker)
            else:
                self._transport.connect()
            while not self._stopping.is_set():
                self._survive_a_full_disk(self._handle, self._transport.receive(_TICK_S))
                self._survive_a_full_disk(self._keep_to_policy)
                self._survive_a_full_disk(self._tick)
        finally:  # also after an error: a link that is closed leaves no will
            with closing(self):
                self._uplink.publish(Offline(device=self._config.device, session=self._session))

    def stop(self) -> None:
        """End the loop soon; from any thread or a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        """Release files and the link. :meth:`run` does so at its end; call it if it was never run. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        with self._held:
            if self._training is not None:
                self._training.stop()
            self._keep_numbers()
            self._releases.close()
            self._tasks.stop()
            self._blobs.close()
            self._transport.close()
        self._status = AgentStatus(release=self._status.release)

    def _survive_a_full_disk(self, action: Callable[..., None], *arguments: object) -> None:
        try:
            action(*arguments)
        except DiskFullError as error:
            self._stock.clear(self._pinned(), error)

    # -- what happens

    def _handle(self, delivery: object) -> None:
        match delivery:
            case Incoming():
                self._receive(delivery)
            case LinkUp():
                self._status = replace(self._status, connected=True, waiting_for="")
                _log.info("connected to %s, fleet %s", self._config.broker, self._config.fleet)
                self._settle(self._blobs.resume())
                self._advance(decisions.Connected())
            case LinkDown(reason):
                self._status = replace(self._status, connected=False)
                _log.warning("the connection to the broker is lost (%s); reconnecting", reason)
            case BulkRoom() | WebArrived() | WebEnded():
                self._settle(self._blobs.handle(delivery))
            case TrainingSaid(offer, event):
                self._training_said(offer, event)
            case Tried():
                self._release_tried(delivery.report)

    def _receive(self, incoming: Incoming) -> None:
        self._machine.transferred(len(incoming.payload))
        message = self._uplink.read(incoming)
        if message is None or self._uplink.takes(message):
            return
        if isinstance(message, BlobMessage):
            self._settle(self._blobs.handle(message))
            return
        if isinstance(message, Announce) and self._state.announced not in {None, message.session}:
            self._settle(self._blobs.resume())
        if isinstance(message, Refused):
            _log.warning("the coordinator refused: %s", message.reason)
        if isinstance(message, Wait | Offer):
            self._heard_of_work(message.reason if isinstance(message, Wait) else "")
        present = self._stock.present(message.manifest) if isinstance(message, Offer) else frozenset()
        self._advance(decisions.Received(message, present))

    def _no_broker(self, error: BrokerUnreachableError) -> None:
        if str(error) != self._obstacle:
            _log.warning("%s; trying again", error)
        self._obstacle = str(error)
        self._status = replace(self._status, waiting_for=self._obstacle)

    def _heard_of_work(self, obstacle: str) -> None:
        """Note why the coordinator has no work for this device, empty if it has; a repeated reason is logged once."""
        if obstacle and obstacle != self._obstacle:
            _log.info("no work yet: %s", obstacle)
        self._obstacle = obstacle
        self._status = replace(self._status, waiting_for=obstacle)

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s - self._ticked_s < _TICK_S:
            return
        self._machine.spend(now_s - self._ticked_s, training=self._state.phase is Phase.TRAINING)
        self._ticked_s = now_s
        if now_s - self._kept_s >= (_KEEP_COUNT_S if self._machine.is_counting else _KEEP_TIME_S):
            self._keep_numbers()
        self._settle(self._blobs.tick())
        self._survive_a_full_disk(self._releases.end_trials, now_s, self._transport.inject)
        self._publish_due(now_s)
        if self._status.connected:
            self._uplink.tick()
        self._advance(decisions.Tick())
        if self._on_tick is not None:
            self._on_tick(self._status)

    def _keep_to_policy(self) -> None:
        """Check the owner's policy, if a check is due, and do what it orders."""
        fetching, training = (self._state.phase is phase for phase in (Phase.FETCHING, Phase.TRAINING))
        orders = self._machine.orders(time.monotonic(), fetching=fetching, training=training)
        if orders is not None:
            self._hold_blobs(orders.hold_blobs)
            if orders.end_work is not None:
                self._end_work(orders.end_work)

    def _end_work(self, denial: Denied) -> None:
        """Stop fetching and training. Fetched bytes stay, and so does a checkpoint unless the disk is too full."""
        _log.info("training stops: %s", denial.reason)
        self._stop_training()
        self._advance(decisions.TrainingFailed(Failure.POLICY, denial.reason))
        self._stock.end_transfers_but(self._pinned())
        if self._machine.lacks_disk():
            self._updates.forget_checkpoint()

    def _hold_blobs(self, denial: Denied | None) -> None:
        """Hold all blobs, or let them move again; messages are never held."""
        if denial is not None and not self._blobs.held:
            _log.info("transfers stop: %s", denial.reason)
            self._blobs.held = True
        elif denial is None and self._blobs.held:
            self._blobs.held = False
            self._settle(self._blobs.resume())

    def _training_said(self, offer: Offer, event: TrainingEvent) -> None:
        if self._state.phase is not Phase.TRAINING or offer is not self._state.offer:
            return
        match event:
            case Progress(step, steps, loss):
                self._status = replace(self._status, step=step, steps=steps, loss=loss)
            case Finished(result):
                try:
                    self._store_update(offer, result)
                except StorageError as error:
                    self._could_not(event, error)
            case Failed(failure, detail, peak_memory_bytes):
                _log.warning("training failed, %s: %s", failure.value, detail)
                self._updates.forget_checkpoint()  # the same offer does not come again
                if failure is Failure.STORAGE and not self._stock.drop_damaged(offer.manifest):
                    self._stock.clear(self._pinned(), detail)
                self._advance(decisions.TrainingFailed(failure, detail, peak_memory_bytes))

    def _release_tried(self, report: ReleaseReport) -> None:
        self._status = replace(self._status, release=self._tasks.release)
        if report.standing is Standing.HEALTHY and self._on_model is not None:
            self._on_model(report)
        self._advance(decisions.ReleaseTried(report))

    # -- what is done about it

    def _advance(self, event: decisions.Event) -> None:
        before = self._state.offer
        self._state, effects = decisions.step(self._state, event, time.monotonic())
        if self._state.offer is not before:
            self._downloaded_before = self._blobs.received_bytes
        offer, is_training = self._state.offer, self._state.phase is Phase.TRAINING
        self._status = replace(
            self._status,
            phase=self._state.phase,
            task=None if offer is None else offer.task,
            round=None if offer is None else offer.round,
            step=self._status.step if is_training else None,
            steps=self._status.steps if is_training else None,
            loss=self._status.loss if is_training else None,
        )
        for effect in effects:
            self._try(effect)

    def _try(self, effect: decisions.Effect) -> None:
        try:
            self._perform(effect)
        except RaffmError as error:
            self._could_not(effect, error)

    def _could_not(self, effect: decisions.Effect | Finished, error: RaffmError) -> None:
        """Give up the offer behind ``effect``: a full disk or a bad blob must never end the agent."""
        _log.error("%s failed: %s", type(effect).__name__, error)
        if isinstance(error, DiskFullError):
            self._stock.clear(self._pinned(), error)
        if isinstance(effect, decisions.Train | Finished) and self._state.phase is not Phase.IDLE:
            self._advance(decisions.TrainingFailed(failure_of(error), str(error)))

    def _perform(self, effect: decisions.Effect) -> None:  # noqa: C901 - one line an effect
        match effect:
            case decisions.Publish(message):
                self._uplink.publish(message)
            case decisions.SayHello():
                hello = Hello(
                    device=self._config.device,
                    session=self._session,
                    profile=self._machine.name,
                    agent_version=__version__,
                    snapshot=self._snapshot(),
                )
                self._uplink.greet(hello, self._releases.lost())
            case decisions.SayReady():
                self._say_ready()
            case decisions.ResendOutbox():
                self._outbox.hurry()
                self._publish_due(time.monotonic())
            case decisions.Fetch(entries):
                self._fetch(entries)
            case decisions.Train(offer):
                self._train(offer)
            case decisions.StopTraining():
                self._stop_training()
                self._stock.end_transfers_but(self._pinned())
            case decisions.Settle(receipt):
                self._updates.settle(receipt)
            case decisions.CheckRelease(message):
                self._check_release(message)
            case decisions.Install(order):
                self._releases.install(order, self._cache, self._transport.inject)
            case decisions.Leave(order):
                self._releases.leave(order, self._transport.inject)

    def _say_ready(self) -> None:
        self._cache.shrink(self._pinned())
        snapshot = self._snapshot()
        denial = self._machine.denial(snapshot)
        ready = self._tasks.ready(snapshot)
        waiting_for = "examples" if ready is None else "" if denial is None else denial.reason
        if waiting_for and self._asks_for_work:  # once: a reason such as a charge is another each time
            _log.info("asking for no work: %s", waiting_for if ready is not None else "there are no examples")
        self._asks_for_work = not waiting_for
        self._status = replace(self._status, waiting_for=waiting_for)
        if denial is None and ready is not None:
            self._uplink.ask(ready, is_heard=self._state.is_heard or not self._status.connected)

    def _snapshot(self) -> Snapshot:
        """What the device can spare now; memory for inference is each task's share of it."""
        snapshot = self._machine.snapshot()
        share = self._tasks.share_bytes(snapshot.inference_memory_bytes)
        return msgspec.structs.replace(snapshot, inference_memory_bytes=share)

    def _fetch(self, entries: Iterable[BlobEntry]) -> None:
        entries = tuple(entries)
        _log.info("fetching %d blobs, %.1f MiB", len(entries), sum(entry.size_bytes for entry in entries) / 2**20)
        try:
            self._stock.make_room(self._state.offer, decisions.needed(self._state), entries)
        except StorageError as error:
            if isinstance(error, DiskFullError):
                self._stock.clear(self._pinned(), error)
            for entry in entries:
                self._advance(decisions.BlobFailed(entry.digest, str(error), Failure.STORAGE))
            return
        self._settle(self._blobs.fetch(entries))

    def _train(self, offer: Offer) -> None:
        about = {"task": offer.task, "round": offer.round}
        _log.info("round %d of %s: training %s", offer.round, offer.task, offer.submodel.width, extra=about)
        self._stop_training()  # one that has failed may still be giving its memory back
        self._stock.make_room(offer, decisions.needed(self._state))
        self._cache.use(entry.digest for entry in offer.manifest)
        own = self._tasks.of(offer.task)
        examples = None if own is None else own.examples.newest()
        if examples is None:
            raise DataFormatError(f"there are no examples of {offer.task} to train on; hand in some")
        job = job_of(offer, self._cache, self._machine.snapshot(), self._config, examples)
        self._training = TrainingProcess(job, lambda event: self._transport.inject(TrainingSaid(offer, event)))

    def _stop_training(self) -> None:
        if self._training is not None:
            self._training.stop()
            self._training = None
            self._updates.forget_leftovers()

    def _store_update(self, offer: Offer, result: TrainingResult) -> None:
        message = self._updates.store(
            offer,
            result,
            downloaded_bytes=self._blobs.received_bytes - self._downloaded_before,
            battery_share=self._machine.snapshot().battery_share,
        )
        self._advance(decisions.UpdateStored(message))
        self._cache.shrink(self._pinned())

    def _check_release(self, message: Release) -> None:
        found = self._releases.check(message)
        if isinstance(found, ReleaseReport):
            self._uplink.publish(found)
        elif found is not None:
            entries = () if found.model is None else found.model.manifest
            if self._releases.lost():
                self._stock.drop_damaged(entries)
            self._advance(decisions.ReleaseTrusted(found, self._stock.present(entries)))

    # -- the wire

    def _publish_due(self, now_s: float) -> None:
        for _, payload in self._outbox.due(now_s):
            self._uplink.resend(payload)

    def _count_sent(self, size_bytes: int) -> None:
        if self._status.connected:
            self._machine.transferred(size_bytes)

    def _settle(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Fetched):
                self._advance(decisions.BlobFetched(outcome.digest))
            else:
                if outcome.failure is Failure.STORAGE:
                    self._stock.clear(self._pinned(), outcome.reason)
                self._advance(decisions.BlobFailed(outcome.digest, outcome.reason, outcome.failure))

    # -- what is kept

    def _keep_numbers(self) -> None:
        """Store the battery's charge and the day's budgets; a crash, or a full disk, loses what was counted since."""
        self._kept_s = time.monotonic()
        try:
            self._outbox.set_numbers(self._machine.numbers())
        except StorageError as error:
            _log.warning("the battery's charge and the day's budgets cannot be stored: %s", error)

    def _pinned(self) -> set[str]:
        return self._stock.pinned(decisions.needed(self._state))
