"""Blobs over messages: the receiver pulls the chunks that it lacks. One implementation for both directions.

    receiver                                   sender
      ChunkRequest(digest, ranges)   ──▶
                                     ◀──       Chunk, Chunk, …   or   BlobGone
      verify and store each chunk; ask for more as chunks arrive; at the end verify the whole

The receiver bounds everything: at most a window of grains is in flight, at most ``max_transfers`` transfers run, and a
chunk that was not requested from this peer is refused. So neither the broker nor a sender's queue ever has to hold more
than that, and a resumed transfer costs only what was missing. The sender reads and sends a chunk only when ``room``
allows it, one peer after the other, and never more than fits into one message.

There are no sockets, threads or clocks here: the caller passes in messages and the time, and ``send`` takes messages to
send. ``Chunk`` belongs on the bulk channels (``chunk/up``, ``chunk/down``), all else on ``up`` and ``down``.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from edge_sdk.errors import BlobCorruptError, StorageError
from edge_sdk.protocol.blobs import grains_of
from edge_sdk.protocol.messages import (
    CHUNK_OVERHEAD_BYTES,
    GRAIN_BYTES,
    MAX_CHUNK_BYTES,
    MAX_PAYLOAD_BYTES,
    BlobGone,
    BlobMessage,
    Chunk,
    ChunkRequest,
    Failure,
)
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.requested import Requested
from edge_sdk.transport.transfer import GIVE_UP_S, Transfer

_log = logging.getLogger(__name__)
WINDOW_BYTES = 1 << 20  # per transfer; those that run share the windows of all max_transfers
MAX_WINDOW_BYTES = 4 << 20  # of one transfer
MAX_TRANSFERS = 2  # one is fetched while another is verified; a coordinator runs more, for many devices
MAX_SILENT = 64  # silent transfers, which keep files open; beyond that, the one silent for longest is given up
_LATE_TICK_S = 10.0  # between two ticks, which are due every second

Send = Callable[[str, BlobMessage], object]


@dataclass(frozen=True, slots=True)
class Fetched:
    """The whole blob is in the folder, verified."""

    peer: str
    digest: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The blob does not come from this peer, unless it is fetched again. Bytes that have arrived are kept if sound."""

    peer: str
    digest: str
    reason: str
    failure: Failure = Failure.TRANSFER


Outcome = Fetched | Failed


class BlobExchange:
    """Serves the blobs of ``folder`` and fetches others into it.

    ``received_bytes`` and ``sent_bytes`` count the data in chunks by peer, including repeated and refused ones. While
    ``held``, nothing is requested, given up or served, so peers have to ask again; call :meth:`resume` afterwards.
    ``room()`` is the size limit of the next encoded ``Chunk`` in bytes, 0 while none may be sent; then call
    :meth:`send_more` once there is room.
    """

    def __init__(
        self,
        folder: BlobFolder,
        send: Send,
        *,
        window_bytes: int = WINDOW_BYTES,
        max_transfers: int = MAX_TRANSFERS,
        room: Callable[[], int] = lambda: MAX_PAYLOAD_BYTES,
    ) -> None:
        self.received_bytes: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.held = False
        self._folder = folder
        self._send = send
        self._window_bytes = window_bytes * max_transfers
        self._room = room
        self._requested = Requested()
        self._max_transfers = max_transfers
        self._transfers: dict[str, Transfer] = {}
        self._outcomes: list[Outcome] = []
        self._ticked_s: float | None = None

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Digests of the blobs that are being fetched or wait for their turn."""
        return tuple(self._transfers)

    def fetch(self, peer: str, digest: str, size_bytes: int, now_s: float) -> list[Outcome]:
        """Begin to fetch a blob from ``peer``, or add it to the blob's transfer; every peer gets an outcome."""
        transfer = self._transfers.get(digest)
        if self._folder.has(digest):
            self._outcomes.append(Fetched(peer, digest))
        elif transfer is None:
            self._transfers[digest] = Transfer(digest, size_bytes, [peer])
        elif transfer.size_bytes != size_bytes:
            self._outcomes.append(Failed(peer, digest, f"{size_bytes} bytes, others say {transfer.size_bytes}"))
        elif peer not in transfer.peers:
            transfer.peers.append(peer)
        return self._settle(now_s)

    def cancel(self, digest: str) -> None:
        """Stop fetching a blob, without an outcome. Arrived bytes stay; the next tick starts another transfer."""
        transfer = self._transfers.pop(digest, None)
        if transfer is not None:
            transfer.close()

    def handle(self, peer: str, message: BlobMessage, now_s: float) -> list[Outcome]:
        """Handle a request or a chunk."""
        match message:
            case ChunkRequest():
                self._serve(peer, message)
            case Chunk():
                self._take_chunk(peer, message, now_s)
            case BlobGone(digest=digest):
                self._lose_peer(peer, digest, "it no longer has this blob")
        return self._settle(now_s) if self._outcomes else []

    def tick(self, now_s: float) -> list[Outcome]:
        """Ask again for what is overdue, and give up on peers that are silent for too long. Call about every second.

        A late call means that this side was frozen or busy, which says nothing about its peers: then all of it is asked
        for anew.
        """
        if self._ticked_s is not None and now_s - self._ticked_s > _LATE_TICK_S:
            self.resume(now_s)
        self._ticked_s = now_s
        self.send_more()
        running = [] if self.held else [t for t in self._transfers.values() if t.partial is not None]
        for transfer in running:
            if transfer.is_given_up(now_s):
                self._lose_peer(transfer.peer, transfer.digest, f"nothing came for {GIVE_UP_S:.0f} s")
            elif transfer.drop_late(now_s):
                self._ask(transfer, now_s)
        self._bound_silent()
        return self._settle(now_s)

    def resume(self, now_s: float, peer: str | None = None) -> None:
        """Ask at once for all that may have been lost, since the link or ``peer`` is back, or blobs may move again."""
        for transfer in self._transfers.values():
            if transfer.partial is not None and peer in {None, transfer.peer}:
                transfer.begin(now_s)
                self._ask(transfer, now_s)

    def close(self) -> None:
        """Close all files; what was fetched stays for the next process."""
        for digest in self.unfinished:
            self.cancel(digest)

    # -- sending

    def send_more(self) -> None:
        """Send what was requested, as far as there is room."""
        while not self.held and (grains := _chunk_grains(self._room())):
            wish = self._requested.next(grains)
            if wish is None:
                return
            self._send_chunk(*wish)

    def _serve(self, peer: str, request: ChunkRequest) -> None:
        if self.held:
            return
        try:
            size_bytes = self._folder.size_of(request.digest)
        except StorageError as error:
            self._cannot_send(peer, request.digest, error)
            return
        if size_bytes is None:
            self._send(peer, BlobGone(digest=request.digest))
            return
        self._requested.add(peer, request.digest, grains_of(request.ranges, size_bytes))
        self.send_more()

    def _send_chunk(self, peer: str, digest: str, first_grain: int, grains: int) -> None:
        """Send one chunk, unless the blob has been deleted meanwhile: then the next request gets ``BlobGone``."""
        if not self._folder.has(digest):
            return
        start = first_grain * GRAIN_BYTES
        try:
            data = self._folder.read(digest, start, start + grains * GRAIN_BYTES)
        except StorageError as error:
            self._cannot_send(peer, digest, error)
            return
        self.sent_bytes[peer] += len(data)
        self._send(peer, Chunk(digest=digest, offset=start, data=data, data_digest=hashlib.sha256(data).digest()))

    def _cannot_send(self, peer: str, digest: str, error: StorageError) -> None:
        """A blob that the disk cannot read is as good as gone."""
        _log.error("blob %s cannot be sent to %s: %s", digest[:16], peer, error)
        self._requested.drop(peer, digest)
        self._send(peer, BlobGone(digest=digest))

    # -- receiving

    def _take_chunk(self, peer: str, chunk: Chunk, now_s: float) -> None:
        self.received_bytes[peer] += len(chunk.data)
        transfer = self._transfers.get(chunk.digest)
        if transfer is None or transfer.partial is None or peer != transfer.peer or not transfer.expects(chunk):
            return
        try:
            transfer.partial.write(chunk.offset, chunk.data)
        except StorageError as error:
            self._end(transfer, str(error))
            return
        transfer.arrived(chunk, now_s, self._most_grains())
        self._advance(transfer, now_s)

    def _most_grains(self) -> int:
        """The grains that one transfer may have in flight: its share of the windows of all that run."""
        running = sum(transfer.partial is not None for transfer in self._transfers.values())
        return max(1, min(MAX_WINDOW_BYTES, self._window_bytes // running) // GRAIN_BYTES)

    def _advance(self, transfer: Transfer, now_s: float) -> None:
        if transfer.partial is None or not transfer.partial.is_complete:
            self._ask(transfer, now_s)
            return
        try:
            transfer.partial.commit()
        except BlobCorruptError as error:
            self._lose_peer(transfer.peer, transfer.digest, str(error))
        except StorageError as error:
            self._end(transfer, str(error))
        else:
            self._end(transfer)

    def _ask(self, transfer: Transfer, now_s: float) -> None:
        while not self.held and (ranges := transfer.next_ranges(now_s)):
            self._send(transfer.peer, ChunkRequest(digest=transfer.digest, ranges=ranges))

    def _lose_peer(self, peer: str, digest: str, reason: str) -> None:
        """Report that ``peer`` failed, and go on with the next peer that offered this blob, if there is one."""
        transfer = self._transfers.get(digest)
        if transfer is None or peer not in transfer.peers:
            return
        if peer == transfer.peer:
            transfer.close()
        transfer.peers.remove(peer)
        self._outcomes.append(Failed(peer, digest, reason))
        if not transfer.peers:
            del self._transfers[digest]

    def _end(self, transfer: Transfer, refused: str = "") -> None:
        """End a transfer with the same outcome for every peer: if the disk ``refused``, another peer does not help."""
        digest = transfer.digest
        self.cancel(digest)
        for peer in transfer.peers:
            self._outcomes.append(Failed(peer, digest, refused, Failure.STORAGE) if refused else Fetched(peer, digest))

    def _settle(self, now_s: float) -> list[Outcome]:
        """Start waiting transfers, in order, while there are free places; the outcomes since the last call."""
        while (transfer := self._next_queued()) is not None:
            self._start(transfer, now_s)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _bound_silent(self) -> None:
        """Give up the longest silent transfers beyond ``MAX_SILENT``, which would use up the open files.

        A peer that is alive offers its blob again.
        """
        silent = [t for t in self._transfers.values() if t.partial is not None and t.is_silent]
        for transfer in sorted(silent, key=lambda t: t.heard_s)[: max(0, len(silent) - MAX_SILENT)]:
            self._lose_peer(transfer.peer, transfer.digest, "nothing comes, and others wait")

    def _next_queued(self) -> Transfer | None:
        """The first transfer that waits, if there is a free place; silent ones occupy none."""
        running = sum(t.partial is not None and not t.is_silent for t in self._transfers.values())
        queued = (t for t in self._transfers.values() if t.partial is None)
        return next(queued, None) if running < self._max_transfers else None

    def _start(self, transfer: Transfer, now_s: float) -> None:
        try:
            transfer.partial = self._folder.open_partial(transfer.digest, transfer.size_bytes)
        except StorageError as error:
            self._end(transfer, str(error))
            return
        transfer.delay_s = max(transfer.delay_s, self._usual_delay_s())
        transfer.begin(now_s)
        self._advance(transfer, now_s)

    def _usual_delay_s(self) -> float:
        """The median delay of running transfers: if this side is slow, a new one must not count as silent too soon."""
        running = [t.delay_s for t in self._transfers.values() if t.partial is not None and not t.is_silent]
        return median(running) if running else 0.0


def _chunk_grains(room_bytes: int) -> int:
    return max(0, min(MAX_CHUNK_BYTES, room_bytes - CHUNK_OVERHEAD_BYTES)) // GRAIN_BYTES
