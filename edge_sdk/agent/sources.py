"""Where a device fetches blobs: from the web if they have an address there, else from the coordinator over MQTT.

A blob that the web does not deliver, for whatever reason, comes from the coordinator; bytes that have arrived are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from edge_sdk.device.machine import Machine
from edge_sdk.errors import StorageError
from edge_sdk.protocol.messages import BlobEntry, BlobMessage, Chunk, Failure
from edge_sdk.transport.address import BrokerAddress, BrokerSettings
from edge_sdk.transport.base import BulkRoom, Transport
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import MAX_TRANSFERS, BlobExchange, Failed, Fetched, Outcome
from edge_sdk.transport.web import WebArrived, WebEnded, WebFetch

_log = logging.getLogger(__name__)
_COORDINATOR = "coordinator"
BlobEvent = BlobMessage | BulkRoom | WebArrived | WebEnded


class BlobSources:
    """Moves blobs into and out of ``folder``, and tells ``machine`` how many bytes arrive, and how fast.

    While :attr:`held`, no blob moves; call :meth:`resume` after that. Pass what ``transport`` delivers about blobs to
    :meth:`handle`. Plain HTTP is allowed only to this machine, and only if the broker in ``settings`` is on it, too:
    a coordinator elsewhere could otherwise make the device send requests to whatever listens here.
    """

    def __init__(
        self,
        folder: BlobFolder,
        send: Callable[[BlobMessage], None],
        transport: Transport,
        machine: Machine,
        settings: BrokerSettings,
    ) -> None:
        self._exchange = BlobExchange(folder, lambda _, message: send(message), room=transport.bulk_room)
        self._folder, self._transport, self._machine, self._ca_file = folder, transport, machine, settings.ca_file
        self._is_near = BrokerAddress.parse(settings.broker or "").is_loopback
        self._waiting: dict[str, BlobEntry] = {}
        self._running: dict[str, tuple[BlobEntry, WebFetch]] = {}
        self._web_bytes = 0

    @property
    def held(self) -> bool:
        """Whether no blob may move."""
        return self._exchange.held

    @held.setter
    def held(self, held: bool) -> None:
        self._exchange.held = held
        if held:
            for digest, (entry, fetch) in self._running.items():
                fetch.stop()
                self._waiting[digest] = entry
            self._running.clear()

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Digests of the blobs that are being fetched, or wait for their turn."""
        return (*self._exchange.unfinished, *self._running, *self._waiting)

    @property
    def received_bytes(self) -> int:
        """Bytes of blobs that have arrived so far, repeated ones included."""
        return self._exchange.received_bytes[_COORDINATOR] + self._web_bytes

    def fetch(self, entries: Iterable[BlobEntry]) -> list[Outcome]:
        """Begin or continue to fetch ``entries``; what has already ended is returned."""
        if not self.unfinished:
            self._machine.link_speed.begin(time.monotonic())
        outcomes: list[Outcome] = []
        for entry in entries:
            if not self._is_on_the_web(entry) or self._folder.has(entry.digest):
                outcomes += self._exchange_fetch(entry)
            elif entry.digest not in self.unfinished:
                self._waiting[entry.digest] = entry
        return outcomes + self._begin_waiting()

    def handle(self, event: BlobEvent) -> list[Outcome]:
        """Handle a message or event about blobs."""
        match event:
            case BulkRoom():
                self._exchange.send_more()
                return []
            case WebArrived(size_bytes=size_bytes):
                self._web_bytes += size_bytes
                self._machine.transferred(size_bytes)
                self._machine.link_speed.arrived(size_bytes, time.monotonic())
                return []
            case WebEnded():
                return self._web_ended(event)
            case Chunk(data=data):
                self._machine.link_speed.arrived(len(data), time.monotonic())
        return self._exchange.handle(_COORDINATOR, event, time.monotonic())

    def tick(self) -> list[Outcome]:
        """Ask again for what is overdue. Call about every second."""
        return self._exchange.tick(time.monotonic())

    def resume(self) -> list[Outcome]:
        """The link is back, or blobs may move again."""
        now_s = time.monotonic()
        self._machine.link_speed.begin(now_s)
        self._exchange.resume(now_s)
        return self._begin_waiting()

    def cancel(self, digest: str) -> None:
        """Stop fetching a blob, without an outcome; the bytes that have arrived stay."""
        self._exchange.cancel(digest)
        self._waiting.pop(digest, None)
        if digest in self._running:
            self._running.pop(digest)[1].stop()

    def close(self) -> None:
        """Close all files; the bytes that have arrived stay for the next process."""
        for digest in self.unfinished:
            self.cancel(digest)

    def _is_on_the_web(self, entry: BlobEntry) -> bool:
        return entry.address is not None and (self._is_near or entry.address.startswith("https://"))

    def _exchange_fetch(self, entry: BlobEntry) -> list[Outcome]:
        return self._exchange.fetch(_COORDINATOR, entry.digest, entry.size_bytes, time.monotonic())

    def _begin_waiting(self) -> list[Outcome]:
        """Start web fetches that wait, up to as many at a time as the exchange runs."""
        outcomes: list[Outcome] = []
        while self._waiting and len(self._running) < MAX_TRANSFERS and not self.held:
            entry = self._waiting.pop(next(iter(self._waiting)))
            if self._folder.has(entry.digest):  # it was held between the last byte and the fetch's end
                outcomes.append(Fetched(_COORDINATOR, entry.digest))
                continue
            try:
                partial = self._folder.open_partial(entry.digest, entry.size_bytes)
            except StorageError as error:
                outcomes.append(Failed(_COORDINATOR, entry.digest, str(error), Failure.STORAGE))
                continue
            fetch = WebFetch(partial, entry.address or "", self._ca_file, self._transport.inject)
            self._running[entry.digest] = entry, fetch
        return outcomes

    def _web_ended(self, ended: WebEnded) -> list[Outcome]:
        digest = ended.fetch.digest
        if digest in self._waiting and self._folder.has(digest):
            del self._waiting[digest]
            return [Fetched(_COORDINATOR, digest)]
        entry, fetch = self._running.get(digest, (None, None))
        if entry is None or fetch is not ended.fetch:
            return []
        del self._running[digest]
        if ended.error is None:
            outcomes: list[Outcome] = [Fetched(_COORDINATOR, digest)]
        elif isinstance(ended.error, StorageError):
            outcomes = [Failed(_COORDINATOR, digest, str(ended.error), Failure.STORAGE)]
        else:
            _log.warning("blob %s is fetched from the coordinator instead: %s", digest[:16], ended.error)
            outcomes = self._exchange_fetch(entry)
        return outcomes + self._begin_waiting()
