"""The coordinator as a process: one loop that receives messages, keeps the registry, moves blobs and drives tasks.

Everything is in the store and in the blob folder before anyone is told of it, so the process may end at any moment and
be started again.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.config import CoordinatorConfig
from coordinator.delivery.keys import own_key
from coordinator.delivery.roots import ensure_root
from coordinator.fleet.enrolment import renew
from coordinator.fleet.folder import open_fleet
from coordinator.metrics.vitals import Vitals
from coordinator.resources import Resources
from coordinator.rounds.agenda import Agenda
from coordinator.rounds.failing import words_of
from coordinator.store.database import Store
from edge_sdk.errors import MalformedMessageError, ProtocolError, RaffmError, StorageError, StoreAwayError
from edge_sdk.protocol.messages import (
    MAX_MESSAGE_BYTES,
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
    Refused,
    ReleaseReport,
    Renew,
    Renewed,
    UpdateReady,
    decode_from_device,
    encode,
    type_of,
)
from edge_sdk.protocol.signing import Role
from edge_sdk.protocol.topics import VERSION, Channel, Topic, coordinator_filters, coordinator_name, parse
from edge_sdk.transport.base import BulkRoom, Incoming, LinkDown, LinkUp, Transport
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import BlobExchange, Fetched, Outcome
from edge_sdk.transport.mqtt import MqttTransport

_log = logging.getLogger(__name__)
_TICK_S = 0.5  # a round is decided at most this much after its deadline
_DISK_PAUSE_S = 15.0  # the pause before work that the disk refused is tried again
_CUT_OFF_S = 10.0  # how long the broker may take to end a revoked device's session
_MAX_TRANSFERS = 16  # the sizes of the embedded broker's logs depend on it


@dataclass(frozen=True, slots=True)
class WorkDone:
    """Heavy ``work`` has ended; this is delivered to the loop like a message."""

    future: Future[Any]
    work: Callable[[], Any]
    then: Callable[[Any], None]
    fail: Callable[[str], None]


def mqtt_transport(config: CoordinatorConfig) -> MqttTransport:
    """The link to the broker that ``config`` names."""
    return MqttTransport.of(config, coordinator_name(config.fleet), coordinator_filters(config.fleet))


class Service:
    """Serves one fleet over ``transport`` until :meth:`stop`, or with ``exit_when_done`` until its tasks have ended."""

    def __init__(self, config: CoordinatorConfig, store: Store, transport: Transport) -> None:
        self._config = config
        self._store = store
        self._transport = transport
        blobs = BlobFolder(config.blob_dir)
        self._exchange = BlobExchange(blobs, self._send, max_transfers=_MAX_TRANSFERS, room=transport.bulk_room)
        self._workers = ThreadPoolExecutor(1, thread_name_prefix="work")
        self._making = 0
        self._sweep_is_due = False
        self._refused: deque[tuple[float, WorkDone]] = deque()
        self._stopping = Event()
        self._tick_due_s = 0.0
        self._gone_since_s: dict[str, float] = {}
        ensure_root(store, config.state_dir, time.time())
        self._received, self._sent, self._is_connected = Counter[str](), Counter[str](), False
        self.vitals = Vitals()
        self._revoked: dict[str, float] = {}
        self._overheard = set[str]()
        resources = Resources(
            settings=config,
            store=store,
            blobs=blobs,
            key=own_key(config.state_dir, Role.ROUND),
            send=self._send,
            fetch=self._fetch,
            cancel=self._exchange.cancel,
            submit=self._submit,
            sweep=self._sweep_soon,
        )
        self._agenda = Agenda(resources)

    def run(self) -> None:
        """Connect and serve.

        While its database is away, it waits: messages lie in the broker, and devices work on. Raises
        ``BrokerUnreachableError`` if the broker cannot be reached at first, ``StorageError`` and, with
        ``exit_when_done``, the error that a task fails with.
        """
        self._transport.connect()
        try:
            self._absences(time.monotonic())
            while not self._stopping.is_set() and not self._is_done():
                self._handle(self._transport.receive(self._config.receive_timeout_s))
                self._tick()
        except StoreAwayError:
            if not self._stopping.is_set():
                raise
        finally:
            self._exchange.close()
            self._transport.close()
            self._workers.shutdown(wait=False, cancel_futures=True)
        _log.info("the coordinator has ended")

    def stop(self) -> None:
        """End the loop soon; safe to call from a signal handler or another thread."""
        self._stopping.set()
        self._store.wait_no_more()

    @property
    def is_working(self) -> bool:
        """Whether heavy work is running beside the loop; it cannot be stopped, and outlasts :meth:`run`."""
        return self._making > 0

    # -- the loop

    def _handle(self, delivery: object) -> None:
        match delivery:
            case Incoming():
                self._receive(delivery)
            case WorkDone():
                self._go_on_after(delivery)
            case LinkUp():
                self._linked(is_up=True)
                _log.info("serving fleet %s at %s", self._config.fleet, self._config.broker)
                announce = Announce(session=secrets.randbits(48))
                self._transport.publish(str(Topic(self._config.fleet)), encode(announce), retain=True)
                self._exchange.resume(time.monotonic())
            case BulkRoom():
                self._exchange.send_more()
            case LinkDown(reason):
                self._linked(is_up=False)
                _log.warning("the connection to the broker is lost (%s); reconnecting", reason)
            case _:
                pass

    def _linked(self, *, is_up: bool) -> None:
        self._is_connected = is_up
        self._agenda.link(is_up=is_up)

    def _go_on_after(self, done: WorkDone) -> None:
        """Continue after heavy work. A task whose work failed fails with that reason, and the service goes on.

        So it does after an error of a library too. Work that only the disk refused is tried again, here or at the next
        start. With ``exit_when_done`` every error ends the service.
        """
        self._making -= 1
        error = done.future.exception()
        if error is None:
            self._go_on_with(done, done.future.result())
        elif isinstance(error, StorageError) and not self._config.exit_when_done:
            _log.error("%s; retrying every %.0f s", error, _DISK_PAUSE_S)
            self._refused.append((time.monotonic() + _DISK_PAUSE_S, done))
        elif isinstance(error, StorageError) or not isinstance(error, Exception):
            raise error
        else:
            self._fail(done, error)
        self._sweep_if_due()

    def _go_on_with(self, done: WorkDone, result: object) -> None:
        """Hand the result on, which may be refused too, for example a release that there is no key for."""
        try:
            done.then(result)
        except StorageError:
            raise
        except RaffmError as error:
            self._fail(done, error)

    def _fail(self, done: WorkDone, error: Exception) -> None:
        words = words_of(error)
        _log.error("the task failed: %s", words, exc_info=None if isinstance(error, RaffmError) else error)
        done.fail(words)
        if self._config.exit_when_done:
            raise error

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s < self._tick_due_s:
            return
        self._tick_due_s = now_s + _TICK_S
        self._settle(self._exchange.tick(now_s))
        while self._refused and now_s >= self._refused[0][0]:
            _, refused = self._refused.popleft()
            self._submit(refused.work, refused.then, refused.fail)
        self._agenda.tick(self._absences(now_s), self._revoked.keys())
        self._sweep_if_due()
        self.vitals = self._noted()

    def _noted(self) -> Vitals:
        """The current figures as a new value, which another thread may read."""
        return Vitals(
            at_s=time.time(),
            is_connected=self._is_connected,
            received=dict(self._received),
            sent=dict(self._sent),
            received_bytes=self._exchange.received_bytes.total(),
            sent_bytes=self._exchange.sent_bytes.total(),
            transfers=len(self._exchange.unfinished),
            unread=self._transport.unread(),
            work=self._making,
            refused=len(self._refused),
        )

    def _is_done(self) -> bool:
        return self._config.exit_when_done and self._agenda.is_over()

    def _absences(self, now_s: float) -> dict[str, float]:
        """For how many seconds each offline device has been away, as seen by this process; also notes the revoked."""
        with self._store.reading() as tx:
            gone, revoked = tx.devices.away(), tx.devices.revoked()
        self._revoked = {device: self._revoked.get(device, now_s) for device in revoked}
        self._overheard &= self._revoked.keys()
        self._gone_since_s = {device: self._gone_since_s.get(device, now_s) for device in gone}
        return {device: now_s - since_s for device, since_s in self._gone_since_s.items()}

    # -- messages

    def _receive(self, incoming: Incoming) -> None:
        """Handle a message; a malformed one is logged and dropped, and never ends the loop."""
        try:
            topic = parse(incoming.topic)
            message = decode_from_device(incoming.payload) if incoming.payload else None
        except MalformedMessageError as error:
            _log.warning("dropped a message on %s: %s", incoming.topic[:200], error)
            return
        if topic.device in self._revoked:
            self._overhear(topic.device)
        elif topic.device is not None and message is not None:
            self._dispatch(topic.device, message)

    def _overhear(self, device: str) -> None:
        """Ignore a message of a revoked device, and log once if the broker has not ended its session in time."""
        is_late = time.monotonic() - self._revoked[device] > _CUT_OFF_S
        if is_late and device not in self._overheard:
            self._overheard.add(device)
            _log.warning(
                "%s is revoked but still connected to the broker; its messages are ignored. `coordinator device revoke "
                "%s` ends its session",
                device,
                device,
            )

    def _dispatch(self, device: str, message: DeviceMessage) -> None:
        self._received[type_of(message)] += 1
        match message:
            case Hello() | Offline():
                self._register(device, message)
            case ChunkRequest() | Chunk() | BlobGone():
                if isinstance(message, ChunkRequest):
                    self._agenda.device_fetches(device)
                self._settle(self._exchange.handle(device, message, time.monotonic()))
            case Ready():
                self._hear_ready(device, message)
            case UpdateReady():
                self._agenda.update_ready(device, message)
            case Declined():
                self._agenda.device_declined(device, message)
            case ReleaseReport():
                self._agenda.release_reported(device, message)
            case Renew():
                self._send(device, self._answer_to_renew(device, message))

    def _hear_ready(self, device: str, ready: Ready) -> None:
        with self._store.transaction(durable=False) as tx:
            known = tx.devices.get(device)
            if known is None or known.revoked_s is not None:
                return  # a command has revoked it since the last tick
            tx.devices.seen(device, time.time(), ready.snapshot)
        if known.has_said_hello:
            self._agenda.device_ready(known, ready)

    def _answer_to_renew(self, device: str, message: Renew) -> Renewed | Refused:
        try:
            fleet = open_fleet(self._config.state_dir)
        except RaffmError as error:  # the authority's files are damaged or gone, which is no reason to stop serving
            _log.error("%s gets no new certificate: %s", device, error)
            return Refused(reason="the fleet's CA cannot be read now")
        if fleet is None:
            return Refused(reason="this fleet has no authority")
        try:
            made = renew(self._store, fleet, device, message, time.time())
        except ProtocolError as error:
            _log.warning("%s gets no new certificate: %s", device, error)
            return Refused(reason=str(error)[:500])
        return Renewed(certificate=made.public_bytes(Encoding.DER))

    def _register(self, device: str, message: Hello | Offline) -> None:
        """Record a hello or a goodbye. The topic identifies the device; a message that names another one is refused."""
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
                session = message.profile if is_new else "an earlier session"
                _log.info("%s is online (%s)", device, session, extra={"device": device})
                if is_new and message.snapshot is not None:
                    tx.devices.seen(device, time.time(), message.snapshot)
            elif tx.devices.offline(device, message.session):
                _log.info("%s is offline", device, extra={"device": device})
                self._agenda.device_left(device)
        if isinstance(message, Hello):
            self._agenda.device_came(device)

    # -- what the tasks work with

    def _send(self, device: str, message: CoordinatorMessage) -> bool:
        """Send a message, unless the device is revoked; ``False`` if it is too large for the broker or any receiver."""
        if device in self._revoked:
            return True
        kind, payload, is_bulk = type_of(message), encode(message), isinstance(message, Chunk)
        if len(payload) > MAX_MESSAGE_BYTES and not is_bulk:
            _log.error(
                "%s is not sent the %s of %d bytes, at most %d are possible: give the task fewer or shorter labels",
                device,
                kind,
                len(payload),
                MAX_MESSAGE_BYTES,
            )
            return False
        self._sent[kind] += 1
        topic = Topic(self._config.fleet, device, Channel.CHUNK_DOWN if is_bulk else Channel.DOWN)
        return self._transport.publish(str(topic), payload, bulk=is_bulk)

    def _fetch(self, device: str, digest: str, size_bytes: int) -> None:
        self._settle(self._exchange.fetch(device, digest, size_bytes, time.monotonic()))

    def _settle(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Fetched):
                self._agenda.blob_fetched(outcome.peer, outcome.digest)
            else:
                about = {"device": outcome.peer}
                _log.warning("blob %s of %s: %s", outcome.digest[:16], outcome.peer, outcome.reason, extra=about)

    def _submit(self, work: Callable[[], Any], then: Callable[[Any], None], fail: Callable[[str], None]) -> None:
        self._making += 1
        future = self._workers.submit(work)
        future.add_done_callback(lambda done: self._transport.inject(WorkDone(done, work, then, fail)))

    def _sweep_soon(self) -> None:
        self._sweep_is_due = True
        self._sweep_if_due()

    def _sweep_if_due(self) -> None:
        """Delete unneeded blobs, but not during heavy work: the blobs that it makes are not recorded yet."""
        if self._sweep_is_due and self._making == 0 and not self._refused:
            self._sweep_is_due = not self._agenda.sweep()
