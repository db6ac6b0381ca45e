"""A fleet of scripted devices on one thread, over any transport: what they say is real, what they train is a function.

    with Fleet(("a", "b"), lambda name, filters: MemoryTransport(hub, filters)) as fleet:
        ...                                  # until a coordinator on the same hub has had its rounds

A device says hello, asks for work, pulls the weights of its offer, answers with what ``work`` makes of them, and says
so again and again until it has its receipt. Its blobs are in memory, so that a thousand of them cost no disk; a real
agent is what :mod:`tests.support.lone_device` runs.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from edge_sdk.errors import BlobCorruptError, MalformedMessageError
from edge_sdk.protocol.blobs import digest_of, grain_count, missing_grains, update_id
from edge_sdk.protocol.messages import (
    GRAIN_BYTES,
    Announce,
    BlobEntry,
    BlobGone,
    Chunk,
    ChunkRequest,
    CoordinatorMessage,
    Declined,
    DeviceMessage,
    Failure,
    Hello,
    Offer,
    Offline,
    Part,
    Ready,
    Receipt,
    Release,
    Snapshot,
    Standing,
    TrainingReport,
    UpdateReady,
    Verdict,
    Wait,
    decode_from_coordinator,
    encode,
)
from edge_sdk.protocol.releases import Assignment, Order, read
from edge_sdk.protocol.signing import opened
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from edge_sdk.protocol.topics import Channel, Topic, device_filters
from edge_sdk.transport.base import Incoming, LinkUp, Transport, Will
from edge_sdk.transport.exchange import BlobExchange, Fetched
from tests.support.history import History, Kind, Operation

MakeLink = Callable[[str, Sequence[str], Will], Transport]
Answer = bytes | Failure | None
Work = Callable[[str, Offer, bytes], Answer]
"""Of a device's name, its offer and the bytes of its weights: an update, a refusal, or silence."""
_PATIENCE_S = 60.0


def small_update(device: str, offer: Offer, weights: bytes) -> bytes:
    """Deltas that depend on who trains what from what, and on nothing else."""
    seed = hashlib.sha256(f"{device} {offer.task} {offer.round} {offer.base_version}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(seed[:8], "little"))
    tensors = read_tensors(weights)
    file = io.BytesIO()
    write_tensors(file, {name: rng.normal(0, 0.01, old.shape).astype(np.float32) for name, old in tensors.items()})
    return file.getvalue()


def able_device(memory_bytes: int = 2 << 30) -> Snapshot:
    """What a device says that can spare ``memory_bytes``."""
    return Snapshot(
        memory_total_bytes=memory_bytes,
        memory_available_bytes=memory_bytes,
        training_memory_bytes=memory_bytes,
        inference_memory_bytes=memory_bytes,
        threads=1,
    )


@dataclass(frozen=True)
class Pace:
    """How often a device asks for work, says again what has no receipt, and lets its transfers look at the clock.

    Told to wait, it does so for ``wait_s`` at most, and for ``ready_s`` at least.
    """

    ready_s: float = 0.2
    wait_s: float = 0.0
    resend_s: float = 0.5
    tick_s: float = 0.5


class Fleet:
    """Devices named ``names``, each with a transport of its own; they live while the context is open.

    ``resends`` off is a fleet without outboxes. What becomes of every update is in ``history``.
    """

    def __init__(
        self,
        names: Iterable[str],
        make_link: MakeLink,
        *,
        work: Work = small_update,
        snapshot: Callable[[str], Snapshot] = lambda _: able_device(),
        pace: Pace = Pace(),
        resends: bool = True,
        history: History | None = None,
        fleet: str = "default",
        blobs: Callable[[], MemoryBlobs] | None = None,
        kind: type[Device] | None = None,
    ) -> None:
        self.devices = {
            name: (kind or Device)(
                name,
                make_link,
                work,
                snapshot(name),
                pace,
                resends=resends,
                history=history,
                fleet=fleet,
                blobs=(blobs or MemoryBlobs)(),
            )
            for name in names
        }
        self._stopping = threading.Event()
        self.resends = resends
        self._vanishing: list[str] = []
        self._thread = threading.Thread(target=self._live, name="fleet", daemon=True)
        self._pause_s = max(0.002, 2e-5 * len(self.devices))

    def __enter__(self) -> Fleet:  # noqa: PYI034 - Self needs Python 3.11
        for device in self.devices.values():
            device.connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_PATIENCE_S)
        for device in self.devices.values():
            device.close()
        assert not self._thread.is_alive()

    @property
    def is_settled(self) -> bool:
        """Whether every update that was made has its receipt."""
        return all(not device.outbox for device in self.devices.values())

    def vanish(self, name: str) -> None:
        """This device does and says nothing from now on; its link stays, as with a hung process."""
        self._vanishing.append(name)

    def _live(self) -> None:
        while not self._stopping.is_set():
            turns = [device.turn(time.monotonic()) for name, device in self.devices.items() if not self._is_gone(name)]
            if not any(turns):
                self._stopping.wait(self._pause_s)

    def _is_gone(self, name: str) -> bool:
        return name in self._vanishing


@dataclass
class Device:
    """One of them. ``outbox`` holds what has no receipt yet, ``settled`` the receipts by update.

    ``announced_s`` is when a coordinator last said that it is there, on the monotonic clock.
    """

    name: str
    make_link: MakeLink
    work: Work
    snapshot: Snapshot
    pace: Pace
    resends: bool
    history: History | None
    fleet: str
    blobs: MemoryBlobs
    outbox: dict[str, UpdateReady] = field(default_factory=dict)
    settled: dict[str, Receipt] = field(default_factory=dict)
    offers: list[Offer] = field(default_factory=list)
    announced_s: float = 0.0

    def __post_init__(self) -> None:
        will = Will(self._topic(Channel.STATE), encode(Offline(device=self.name, session=1)))
        self.link = self.make_link(self.name, device_filters(self.fleet, self.name), will)
        self._exchange = BlobExchange(self.blobs, lambda _, message: self.say(message))  # type: ignore[arg-type]
        self._offer: Offer | None = None
        self._is_heard = False
        self._answered: set[tuple[str, int]] = set()
        self._ready_due_s = self._resend_due_s = self._tick_due_s = 0.0

    def connect(self) -> None:
        """Raises what the transport raises."""
        self.link.connect()

    def close(self) -> None:
        """Leave."""
        self._exchange.close()
        self.link.close()

    def turn(self, now_s: float) -> bool:
        """Take one delivery and look at the clock; whether there was a delivery."""
        delivery = self.link.receive(0)
        match delivery:
            case LinkUp():
                self._introduce(now_s)
            case Incoming():
                self._receive(delivery, now_s)
        self._look_at_the_clock(now_s)
        return delivery is not None

    def say(self, message: DeviceMessage) -> None:
        """To the coordinator."""
        is_state = isinstance(message, Hello)
        channel = Channel.STATE if is_state else Channel.CHUNK_UP if isinstance(message, Chunk) else Channel.UP
        self.link.publish(self._topic(channel), encode(message), retain=is_state)

    def _topic(self, channel: Channel) -> str:
        return str(Topic(self.fleet, self.name, channel))

    def _introduce(self, now_s: float) -> None:
        self._is_heard = False
        self._say_hello()
        self._exchange.resume(now_s)
        self._ready_due_s = self._resend_due_s = now_s

    def _say_hello(self) -> None:
        self.say(Hello(device=self.name, session=1, profile="unknown", agent_version="0", snapshot=self.snapshot))

    def _look_at_the_clock(self, now_s: float) -> None:
        if now_s >= self._tick_due_s:
            self._tick_due_s = now_s + self.pace.tick_s
            self._settle(self._exchange.tick(now_s))
        if self._offer is None and now_s >= self._ready_due_s:
            self._ready_due_s = now_s + self.pace.ready_s
            if not self._is_heard:
                self._say_hello()
            self.say(Ready(snapshot=self.snapshot))
        if self.resends and self.outbox and now_s >= self._resend_due_s:
            self._resend_due_s = now_s + self.pace.resend_s
            for update in self.outbox.values():
                self.say(update)

    def _receive(self, incoming: Incoming, now_s: float) -> None:
        """What a bad link has made of a message is dropped, as an agent does."""
        with suppress(MalformedMessageError):
            self._hear(decode_from_coordinator(incoming.payload), now_s)

    def _hear(self, message: CoordinatorMessage, now_s: float) -> None:
        self._is_heard = self._is_heard or not isinstance(message, Announce)
        match message:
            case ChunkRequest() | Chunk() | BlobGone():
                self._settle(self._exchange.handle("coordinator", message, now_s))
            case Offer() as offer:
                self._consider(offer, now_s)
            case Receipt() as receipt:
                self._receipted(receipt)
            case Release():
                self.released(message)
            case Wait(retry_after_s=retry_after_s):
                self._ready_due_s = now_s + max(self.pace.ready_s, min(retry_after_s, self.pace.wait_s))
            case Announce():
                self.announced_s = self._ready_due_s = self._resend_due_s = now_s
            case _:
                pass

    def _consider(self, offer: Offer, now_s: float) -> None:
        if (offer.task, offer.round) in self._answered or offer == self._offer:
            return
        self._offer = offer
        self.offers.append(offer)
        weights = _weights(offer)
        self._settle(self._exchange.fetch("coordinator", weights.digest, weights.size_bytes, now_s))

    def _settle(self, outcomes: Iterable[object]) -> None:
        for outcome in outcomes:
            offer = self._offer
            if offer is None or getattr(outcome, "digest", None) != _weights(offer).digest:
                continue
            self._offer = None
            if isinstance(outcome, Fetched):
                self._answer(offer, self.work(self.name, offer, self.blobs.whole.pop(outcome.digest)))
            else:
                self.say(Declined(task=offer.task, round=offer.round, failure=Failure.TRANSFER))

    def _answer(self, offer: Offer, answer: Answer) -> None:
        if answer is not None:
            self._answered.add((offer.task, offer.round))
        if isinstance(answer, Failure):
            self.say(Declined(task=offer.task, round=offer.round, failure=answer))
        elif answer is not None:
            digest = self.blobs.put_bytes(answer)
            update = self._update(offer, digest, self.blobs.size_of(digest) or 0)
            self.outbox[update.update_id] = update
            self._note(Kind.INVOKE, update)
            self.say(update)

    def _update(self, offer: Offer, digest: str, size_bytes: int) -> UpdateReady:
        report = TrainingReport(
            samples=len(self.name) + offer.round,
            steps=1,
            loss_first=1.0,
            loss_last=0.5,
            seconds=0.1,
            peak_memory_bytes=1,
            downloaded_bytes=1,
            uploaded_bytes=size_bytes,
        )
        return UpdateReady(
            update_id=update_id(self.name, offer.task, offer.round, offer.base_version, digest),
            task=offer.task,
            round=offer.round,
            base_version=offer.base_version,
            update=BlobEntry(part=Part.WEIGHTS, digest=digest, size_bytes=size_bytes),
            report=report,
        )

    def _receipted(self, receipt: Receipt) -> None:
        self.settled[receipt.update_id] = receipt
        update = self.outbox.pop(receipt.update_id, None)
        if update is not None:
            self.blobs.whole.pop(update.update.digest, None)
            self._note(Kind.OK if receipt.verdict is Verdict.ACCEPTED else Kind.FAIL, update)
        self._ready_due_s = 0.0

    def released(self, release: Release) -> None:
        """It runs at once, and well; what is to be left is left."""
        assignment = read(Assignment, opened(release.envelope).payload)
        standing = Standing.ROLLED_BACK if assignment.export is None else Standing.HEALTHY
        self.say(Order(assignment).report(standing))

    def _note(self, kind: Kind, update: UpdateReady) -> None:
        if self.history is not None:
            self.history.add(Operation("update", kind, self.name, update.round, update.update_id))


def _weights(offer: Offer) -> BlobEntry:
    return next(entry for entry in offer.manifest if entry.part is Part.WEIGHTS)


class MemoryBlobs:
    """As much of a :class:`edge_sdk.transport.blob_folder.BlobFolder` as an exchange needs, without a disk."""

    def __init__(self) -> None:
        self.whole: dict[str, bytes] = {}

    def has(self, digest: str) -> bool:
        return digest in self.whole

    def size_of(self, digest: str) -> int | None:
        return len(self.whole[digest]) if digest in self.whole else None

    def read(self, digest: str, start: int, stop: int) -> bytes:
        return self.whole[digest][start:stop]

    def put_bytes(self, data: bytes) -> str:
        digest = digest_of(data)
        self.whole[digest] = data
        return digest

    def open_partial(self, digest: str, size_bytes: int) -> MemoryPartial:
        return MemoryPartial(self, digest, size_bytes)


class MemoryPartial:
    """A blob on its way into :class:`MemoryBlobs`."""

    def __init__(self, blobs: MemoryBlobs, digest: str, size_bytes: int) -> None:
        self._blobs, self._digest, self._data = blobs, digest, bytearray(size_bytes)
        self._flags = bytearray(grain_count(size_bytes))

    @property
    def is_complete(self) -> bool:
        return 0 not in self._flags

    def missing(self) -> Iterator[int]:
        return missing_grains(self._flags)

    def write(self, offset: int, data: bytes) -> None:
        self._data[offset : offset + len(data)] = data
        first, count = offset // GRAIN_BYTES, grain_count(len(data))
        self._flags[first : first + count] = b"\x01" * count

    def commit(self) -> None:
        if digest_of(self._data) != self._digest:
            raise BlobCorruptError(f"blob {self._digest[:16]} came with other bytes")
        self._blobs.whole[self._digest] = bytes(self._data)

    def close(self) -> None:
        with suppress(BufferError):
            self._data = bytearray(len(self._data))
