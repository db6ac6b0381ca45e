"""The coordinator as a process: one loop that hears devices, keeps the registry, moves blobs and drives tasks in turn.

All state that matters is in the store and in the blob folder before anyone is told, so the process may end at any
instant and be started again.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

from coordinator.config import CoordinatorConfig, read_task
from coordinator.delivery.keys import release_key
from coordinator.resources import Resources
from coordinator.rounds.conductor import Conductor, Stage
from coordinator.store.database import Store
from coordinator.store.states import TaskStatus
from edge_sdk.errors import MalformedMessageError, RaffmError, StorageError
from edge_sdk.protocol.messages import (
    Announce,
    BlobGone,
    Chunk,
    ChunkRequest,
    CoordinatorMessage,
    Declined,
    DeviceMessage,
    Hello,
    Offline,
    Ready,
    Receipt,
    Refused,
    ReleaseReport,
    Snapshot,
    UpdateReady,
    Verdict,
    Wait,
    decode_from_device,
    encode,
)
from edge_sdk.protocol.topics import VERSION, Channel, Topic, coordinator_filters, parse
from edge_sdk.transport.base import BulkRoom, Incoming, LinkDown, LinkUp, Transport
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import BlobExchange, Fetched, Outcome
from edge_sdk.transport.mqtt import MqttTransport

_log = logging.getLogger(__name__)
_TICK_S = 0.5  # a round is decided at its deadline or so much later
_DISK_PAUSE_S = 15.0  # until work that the disk refused is tried again
_MAX_TRANSFERS = 16  # the embedded broker's logs are sized for it


@dataclass(frozen=True, slots=True)
class WorkDone:
    """Heavy ``work`` has ended; delivered to the loop like a message."""

    future: Future[Any]
    work: Callable[[], Any]
    then: Callable[[Any], None]


def mqtt_transport(config: CoordinatorConfig) -> MqttTransport:
    """The link to the broker that ``config`` names."""
    return MqttTransport.of(config, f"{config.fleet}-coordinator", coordinator_filters(config.fleet))


class Service:
    """Serves one fleet over ``transport`` until :meth:`stop`, or until its tasks are done where so configured."""

    def __init__(self, config: CoordinatorConfig, store: Store, transport: Transport) -> None:
        self._config = config
        self._store = store
        self._transport = transport
        blobs = BlobFolder(config.blob_dir)
        self._exchange = BlobExchange(blobs, self._send, max_transfers=_MAX_TRANSFERS, room=transport.bulk_room)
        self._workers = ThreadPoolExecutor(1, thread_name_prefix="work")
        self._work: Future[Any] | None = None
        self._refused: tuple[float, WorkDone] | None = None
        self._stopping = Event()
        self._conductor: Conductor | None = None
        self._tick_due_s = 0.0
        self._gone_since_s: dict[str, float] = {}
        self._resources = Resources(
            settings=config,
            store=store,
            blobs=blobs,
            key=release_key(config.state_dir),
            send=self._send,
            fetch=self._fetch,
            cancel=self._exchange.cancel,
            submit=self._submit,
        )

    def run(self) -> None:
        """Connect and serve. Raises ``BrokerUnreachableError``, and whatever named error ends a task."""
        self._transport.connect()
        try:
            while not self._stopping.is_set() and not self._is_done():
                self._handle(self._transport.receive(self._config.receive_timeout_s))
                self._tick()
        finally:
            self._exchange.close()
            self._transport.close()
            self._workers.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """End the loop soon; may be called from a signal handler or another thread."""
        self._stopping.set()

    @property
    def is_working(self) -> bool:
        """Whether heavy work runs beside the loop, which cannot be stopped and outlasts :meth:`run`."""
        return self._work is not None and not self._work.done()

    # -- the loop

    def _handle(self, delivery: object) -> None:
        match delivery:
            case Incoming():
                self._receive(delivery)
            case WorkDone():
                self._go_on_after(delivery)
            case LinkUp():
                announce = Announce(session=secrets.randbits(48))
                self._transport.publish(str(Topic(self._config.fleet)), encode(announce), retain=True)
                self._exchange.resume(time.monotonic())
            case BulkRoom():
                self._exchange.send_more()
            case LinkDown(reason):
                _log.warning("the broker is gone (%s); reconnecting", reason)
            case _:
                pass

    def _go_on_after(self, done: WorkDone) -> None:
        """A task that cannot go on fails with its reason; the service goes on, unless that was all it was to do.

        What only a disk refused is tried again, here or by the next start.
        """
        try:
            result = done.future.result()
        except StorageError as error:
            if self._config.exit_when_done:
                raise
            _log.error("%s; trying again every %.0f s", error, _DISK_PAUSE_S)
            self._refused = (time.monotonic() + _DISK_PAUSE_S, done)
        except RaffmError as error:
            _log.error("the task fails: %s", error)
            if self._conductor is not None:
                self._conductor.fail()
            if self._config.exit_when_done:
                raise
        else:
            done.then(result)

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s < self._tick_due_s:
            return
        self._tick_due_s = now_s + _TICK_S
        self._settle(self._exchange.tick(now_s))
        if self._refused is not None and now_s >= self._refused[0]:
            (_, refused), self._refused = self._refused, None
            self._submit(refused.work, refused.then)
        if self._conductor is None or self._conductor.stage is Stage.DONE:
            self._next_task()
        if self._conductor is not None:
            self._conductor.tick(self._absences(now_s))

    def _next_task(self) -> None:
        """An interrupted task first, then the oldest that waits."""
        with self._store.reading() as tx:
            tasks = {task.status: task for task in reversed(tx.tasks.all())}
        task = tasks.get(TaskStatus.RUNNING) or tasks.get(TaskStatus.PENDING)
        self._conductor = None
        if task is not None:
            _log.info("task %s begins", task.name)
            self._conductor = Conductor(read_task(task.config), self._resources)
            self._conductor.start()

    def _is_done(self) -> bool:
        if not self._config.exit_when_done or self._conductor is not None:
            return False
        with self._store.reading() as tx:
            tasks = tx.tasks.all()
        return bool(tasks) and all(task.status in {TaskStatus.DONE, TaskStatus.FAILED} for task in tasks)

    def _absences(self, now_s: float) -> dict[str, float]:
        """For how long each device that is offline has been, as far as this process has seen."""
        with self._store.reading() as tx:
            gone = [known.id for known in tx.devices.all() if not known.online]
        self._gone_since_s = {device: self._gone_since_s.get(device, now_s) for device in gone}
        return {device: now_s - since_s for device, since_s in self._gone_since_s.items()}

    # -- messages

    def _receive(self, incoming: Incoming) -> None:
        """Whatever is malformed is refused and dropped; it never ends the loop."""
        try:
            topic = parse(incoming.topic)
            message = decode_from_device(incoming.payload) if incoming.payload else None
        except MalformedMessageError as error:
            _log.warning("dropped a message on %s: %s", incoming.topic[:200], error)
            return
        if topic.device is not None and message is not None:
            self._dispatch(topic.device, message)

    def _dispatch(self, device: str, message: DeviceMessage) -> None:
        match message:
            case Hello() | Offline():
                self._register(device, message)
            case ChunkRequest() | Chunk() | BlobGone():
                self._settle(self._exchange.handle(device, message, time.monotonic()))
            case Ready(snapshot=snapshot, tasks=tasks):
                with self._store.transaction(durable=False) as tx:
                    known = tx.devices.get(device)
                    tx.devices.seen(device, time.time(), snapshot)
                if known is not None:
                    self._device_ready(device, snapshot, tasks)
            case UpdateReady():
                self._update_ready(device, message)
            case Declined(task=task):
                if self._conductor is not None and self._conductor.config.name == task:
                    self._conductor.device_declined(device, message)
            case ReleaseReport(task=task):
                if self._conductor is not None and self._conductor.config.name == task:
                    self._conductor.release_reported(device, message)

    def _device_ready(self, device: str, snapshot: Snapshot, tasks: Sequence[str]) -> None:
        if self._conductor is not None:
            self._conductor.device_ready(device, snapshot, tasks)
        else:
            self._send(device, Wait(retry_after_s=self._config.retry_after_s, reason="no task is waiting"))

    def _register(self, device: str, message: Hello | Offline) -> None:
        """Keep the registry. The topic says who speaks; a message that names another is refused."""
        if message.device != device:
            self._send(device, Refused(reason=f"the message names {message.device}, its topic {device}"))
            return
        if isinstance(message, Hello) and VERSION not in message.versions:
            self._send(device, Refused(reason=f"this coordinator speaks version {VERSION}, not {message.versions}"))
            return
        if isinstance(message, Hello):
            self._exchange.resume(time.monotonic(), device)  # what was on its way to or from it is lost
        with self._store.transaction() as tx:
            if isinstance(message, Hello):
                is_new = tx.devices.hello(device, message.profile, message.session, time.time())
                _log.info("%s says hello (%s)", device, message.profile if is_new else "an earlier session")
                if is_new and message.snapshot is not None:
                    tx.devices.seen(device, time.time(), message.snapshot)
            elif tx.devices.offline(device, message.session):
                _log.info("%s is offline", device)

    def _update_ready(self, device: str, update: UpdateReady) -> None:
        """To the running task; an update for another one gets the receipt that it had, or is refused."""
        if self._conductor is not None and self._conductor.config.name == update.task:
            self._conductor.update_ready(device, update)
            return
        with self._store.reading() as tx:
            known = tx.updates.get(update.update_id)
            is_waiting = any(task.name == update.task and task.status is TaskStatus.RUNNING for task in tx.tasks.all())
        if known is not None:
            self._send(device, Receipt(update_id=update.update_id, verdict=known.verdict, reason=known.reason[:500]))
        elif not is_waiting:
            reason = f"task {update.task} is not running"
            self._send(device, Receipt(update_id=update.update_id, verdict=Verdict.REJECTED, reason=reason))

    # -- what the conductor works with

    def _send(self, device: str, message: CoordinatorMessage) -> None:
        is_bulk = isinstance(message, Chunk)
        channel = Channel.CHUNK_DOWN if is_bulk else Channel.DOWN
        self._transport.publish(str(Topic(self._config.fleet, device, channel)), encode(message), bulk=is_bulk)

    def _fetch(self, device: str, digest: str, size_bytes: int) -> None:
        self._settle(self._exchange.fetch(device, digest, size_bytes, time.monotonic()))

    def _settle(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Fetched) and self._conductor is not None:
                self._conductor.blob_fetched(outcome.peer, outcome.digest)
            elif not isinstance(outcome, Fetched):
                _log.warning("blob %s of %s: %s", outcome.digest[:16], outcome.peer, outcome.reason)

    def _submit(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self._work = self._workers.submit(work)
        self._work.add_done_callback(lambda done: self._transport.inject(WorkDone(done, work, then)))
