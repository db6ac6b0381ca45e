"""The receiving side of one blob: what was asked for, how much to ask for at a time, and how long to be patient.

The window follows the link: a chunk that comes within two seconds of being asked for widens it by one, a later one
narrows it. A slow link then carries one chunk at a time, and small messages are not stuck behind bulk. Patience follows
the link too, three times the slowest recent chunk, so that a slow link is not made slower by asking twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import islice

from edge_sdk.protocol.blobs import Range, chunks_of
from edge_sdk.protocol.messages import Chunk
from edge_sdk.transport.blob_folder import Partial

GIVE_UP_S = 180.0
_FIRST_WINDOW_CHUNKS = 2
_PROMPT_S = 2.0
_PATIENCE_S = 5.0
_MAX_PATIENCE_S = 60.0


@dataclass(slots=True, eq=False)
class Transfer:
    """One blob on its way; :class:`edge_sdk.transport.exchange.BlobExchange` drives it.

    ``partial`` is ``None`` while the transfer waits for its turn. ``asked`` maps the offset of each chunk on its way to
    when it was asked for; ``welcome`` maps those and the late ones, which are taken if they still come, to their sizes.
    ``silences`` counts the re-asks since the last chunk.
    """

    digest: str
    size_bytes: int
    peers: list[str]
    partial: Partial | None = None
    asked: dict[int, float] = field(default_factory=dict)
    welcome: dict[int, int] = field(default_factory=dict)
    window: int = _FIRST_WINDOW_CHUNKS
    delay_s: float = 0.0
    silences: int = 0
    heard_s: float = 0.0

    @property
    def peer(self) -> str:
        """Whom the blob comes from; the others wait in case this one fails."""
        return self.peers[0]

    def begin(self, now_s: float) -> None:
        """Nothing is on its way; ask anew."""
        self.asked.clear()
        self.window, self.silences, self.heard_s = _FIRST_WINDOW_CHUNKS, 0, now_s

    def close(self) -> None:
        """Keep what was fetched; the transfer waits for its turn again."""
        if self.partial is not None:
            self.partial.close()
        self.partial = None
        self.welcome.clear()

    def next_chunks(self, now_s: float) -> list[Range]:
        """The chunks to ask for now, noted as asked: none until half the window is free, to send fewer requests."""
        room = self.window - len(self.asked)
        if self.partial is None or room < max(1, self.window // 2):
            return []
        chunks = chunks_of(self.partial.missing(), self.size_bytes)
        chosen = list(islice((chunk for chunk in chunks if chunk[0] not in self.asked), room))
        self.asked |= dict.fromkeys((start for start, _ in chosen), now_s)
        self.welcome |= {start: stop - start for start, stop in chosen}
        return chosen

    def expects(self, chunk: Chunk) -> bool:
        """Whether this chunk was asked for, is whole and holds the bytes that it says."""
        return (
            self.welcome.get(chunk.offset) == len(chunk.data)
            and hashlib.sha256(chunk.data).digest() == chunk.data_digest
        )

    def arrived(self, offset: int, now_s: float, most: int) -> None:
        """Adapt the window to how long the chunk took. ``delay_s`` is a maximum that fades by a quarter a chunk."""
        del self.welcome[offset]
        delay_s = now_s - self.asked.pop(offset, self.heard_s)
        self.delay_s = max(delay_s, 0.75 * self.delay_s)
        self.window = min(most, self.window + 1) if delay_s < _PROMPT_S else max(1, self.window - 1)
        self.silences, self.heard_s = 0, now_s

    def drop_late(self, now_s: float) -> bool:
        """Forget what is overdue, so that it is asked for again; whether there was any."""
        patience_s = min(_MAX_PATIENCE_S, max(_PATIENCE_S, 3 * self.delay_s) * 2**self.silences)
        late = [offset for offset, asked_s in self.asked.items() if now_s - asked_s > patience_s]
        for offset in late:
            del self.asked[offset]
        if late and now_s - self.heard_s > patience_s:
            self.window, self.silences = 1, self.silences + 1
        return bool(late)

    def is_given_up(self, now_s: float) -> bool:
        """Whether the peer has been silent for good."""
        return now_s - self.heard_s > GIVE_UP_S
