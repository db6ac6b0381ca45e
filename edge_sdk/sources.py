"""Where the blobs of a device's work come from: the coordinator, over the exchange."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from edge_sdk.device.link import LinkSpeed
from edge_sdk.protocol.messages import BlobEntry, Chunk
from edge_sdk.transport.base import BulkRoom
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import BlobExchange, BlobMessage, Outcome

_COORDINATOR = "coordinator"


class BlobSources:
    """Blobs in and out of ``folder``; ``link_speed`` hears how fast they come.

    While :attr:`held` none moves; :meth:`resume` after it.
    """

    def __init__(
        self,
        folder: BlobFolder,
        send: Callable[[BlobMessage], None],
        room: Callable[[], int],
        link_speed: LinkSpeed,
    ) -> None:
        self._exchange = BlobExchange(folder, lambda _, message: send(message), room=room)
        self._link_speed = link_speed

    @property
    def held(self) -> bool:
        """Whether no blob may move."""
        return self._exchange.held

    @held.setter
    def held(self, held: bool) -> None:
        self._exchange.held = held

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Digests of the blobs that are on their way."""
        return self._exchange.unfinished

    @property
    def received_bytes(self) -> int:
        """How much of blobs has come so far, what came twice included."""
        return self._exchange.received_bytes[_COORDINATOR]

    def fetch(self, entries: Iterable[BlobEntry]) -> list[Outcome]:
        """Begin to fetch these, or go on."""
        now_s = time.monotonic()
        if not self.unfinished:
            self._link_speed.begin(now_s)
        return [
            outcome
            for entry in entries
            for outcome in self._exchange.fetch(_COORDINATOR, entry.digest, entry.size_bytes, now_s)
        ]

    def handle(self, event: BlobMessage | BulkRoom) -> list[Outcome]:
        """Take what concerns blobs. ``StorageError`` where one cannot be read."""
        now_s = time.monotonic()
        if isinstance(event, BulkRoom):
            self._exchange.send_more()
            return []
        if isinstance(event, Chunk):
            self._link_speed.arrived(len(event.data), now_s)
        return self._exchange.handle(_COORDINATOR, event, now_s)

    def tick(self) -> list[Outcome]:
        """Ask again for what is overdue; about every second."""
        return self._exchange.tick(time.monotonic())

    def resume(self) -> None:
        """The link is back, or blobs may move again."""
        now_s = time.monotonic()
        self._link_speed.begin(now_s)
        self._exchange.resume(now_s)

    def cancel(self, digest: str) -> None:
        """Stop fetching a blob, without an outcome; what came of it stays."""
        self._exchange.cancel(digest)

    def close(self) -> None:
        """Close all files; what was fetched stays for the next process."""
        self._exchange.close()
