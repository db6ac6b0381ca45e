"""The receiving side of one blob: what was requested, how much to request at a time, and when a request is overdue.

The window adapts to the link: grains that arrive within a second of their request widen it by their number, grains that
take more than six seconds narrow it. A link of 64 kbit/s, which carries a grain in two seconds, then has two in flight:
one is always arriving, and a small message never waits behind more than these. Patience, after which a grain is
overdue, adapts as well: it is three times the delay of the slowest recent grain, so that a slow link is not made slower
by repeated requests. For a grain that was requested twice, nobody knows which request was answered. So it says nothing
about the link, and patience that has grown stays until another grain does (Karn and Partridge 1987, for TCP).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import islice

from edge_sdk.protocol.blobs import Range, grain_count, ranges_of
from edge_sdk.protocol.messages import GRAIN_BYTES, Chunk
from edge_sdk.transport.blob_folder import Partial

GIVE_UP_S = 180.0
_FIRST_WINDOW_GRAINS = 2
_PROMPT_S = 1.0
_SLOW_S = 6.0
_PATIENCE_S = 5.0
_MAX_PATIENCE_S = 30.0


@dataclass(slots=True, eq=False)
class Transfer:
    """One blob on its way; :class:`edge_sdk.transport.exchange.BlobExchange` drives it.

    ``partial`` is ``None`` while the transfer waits for its turn. ``asked`` maps each grain in flight to when it was
    requested. ``welcome`` are those and overdue ones, which are accepted if they still arrive; ``late`` are grains that
    were overdue once. ``window`` counts grains. The transfer ``is_silent`` while everything requested is overdue.
    """

    digest: str
    size_bytes: int
    peers: list[str]
    partial: Partial | None = None
    asked: dict[int, float] = field(default_factory=dict)
    welcome: set[int] = field(default_factory=set)
    window: int = _FIRST_WINDOW_GRAINS
    late: set[int] = field(default_factory=set)
    delay_s: float = 0.0
    patience_s: float = _PATIENCE_S
    is_silent: bool = False
    heard_s: float = 0.0

    @property
    def peer(self) -> str:
        """The peer that sends the blob; the others are tried if it fails."""
        return self.peers[0]

    def begin(self, now_s: float) -> None:
        """Forget what is in flight, and begin to request from the start of the window."""
        self.asked.clear()
        self.late.clear()
        self.window, self.is_silent, self.heard_s = _FIRST_WINDOW_GRAINS, False, now_s
        self.patience_s = _patience_s(self.delay_s)

    def close(self) -> None:
        """Keep what was fetched; the transfer waits for its turn again."""
        if self.partial is not None:
            self.partial.close()
        self.partial = None
        self.welcome.clear()

    def next_ranges(self, now_s: float) -> tuple[Range, ...]:
        """The bytes to request next, half a window at a time, so that the other half keeps arriving."""
        half = max(1, self.window // 2)
        if self.partial is None or self.window - len(self.asked) < half:
            return ()
        chosen = list(islice((grain for grain in self.partial.missing() if grain not in self.asked), half))
        self.asked |= dict.fromkeys(chosen, now_s)
        self.welcome.update(chosen)
        return tuple(ranges_of(chosen, self.size_bytes))

    def expects(self, chunk: Chunk) -> bool:
        """Whether this chunk consists of complete grains that were requested, and its bytes match its digest."""
        stop = chunk.offset + len(chunk.data)
        is_whole = chunk.offset % GRAIN_BYTES == 0 and (stop % GRAIN_BYTES == 0 or stop == self.size_bytes)
        return (
            bool(chunk.data)
            and is_whole
            and self.welcome.issuperset(_grains_in(chunk))
            and hashlib.sha256(chunk.data).digest() == chunk.data_digest
        )

    def arrived(self, chunk: Chunk, now_s: float, most: int) -> None:
        """Adapt the window to the grains' delays. ``delay_s`` is their maximum, which decays by a quarter per chunk."""
        grains = _grains_in(chunk)
        self.welcome.difference_update(grains)
        asked_s = [self.asked.pop(grain, None) for grain in grains]
        self.is_silent, self.heard_s = False, now_s
        told_s = [now_s - at_s for at_s in asked_s if at_s is not None]
        if not self.late.isdisjoint(grains) or not told_s:
            self.late.difference_update(grains)
            return
        self.delay_s = max(*told_s, 0.75 * self.delay_s)
        self.patience_s = _patience_s(self.delay_s)
        if max(told_s) < _PROMPT_S:
            self.window += len(grains)
        elif max(told_s) > _SLOW_S:
            self.window -= len(grains)
        self.window = min(most, max(1, self.window))

    def drop_late(self, now_s: float) -> bool:
        """Forget requests that are overdue, so that they are repeated; whether there were any."""
        late = [grain for grain, asked_s in self.asked.items() if now_s - asked_s > self.patience_s]
        for grain in late:
            del self.asked[grain]
        self.late.update(late)
        if late and now_s - self.heard_s > self.patience_s:
            self.window, self.is_silent = 1, True
            self.patience_s = min(_MAX_PATIENCE_S, 2 * self.patience_s)
        return bool(late)

    def is_given_up(self, now_s: float) -> bool:
        """Whether the peer has been silent for so long that the transfer is given up."""
        return now_s - self.heard_s > GIVE_UP_S


def _patience_s(delay_s: float) -> float:
    return min(_MAX_PATIENCE_S, max(_PATIENCE_S, 3 * delay_s))


def _grains_in(chunk: Chunk) -> range:
    first = chunk.offset // GRAIN_BYTES
    return range(first, first + grain_count(len(chunk.data)))
