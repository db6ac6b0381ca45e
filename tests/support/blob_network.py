"""Blob exchanges joined without sockets or real time: a link that loses, repeats, reorders, garbles and is slow."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from edge_sdk.protocol.messages import BlobMessage, Chunk, ChunkRequest, decode_from_coordinator, encode
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import BlobExchange, Outcome


@dataclass(frozen=True)
class Link:
    """Shares of messages that suffer each fault; ``bytes_per_s`` is one way, shared by all."""

    loss: float = 0.0
    repeat: float = 0.0
    garble: float = 0.0
    delay_s: float = 0.01
    jitter_s: float = 0.0
    bytes_per_s: float = 1e9


class BlobNetwork:
    """Peers by name, and a clock that jumps from one event to the next."""

    def __init__(self, folder: Path, link: Link, seed: int, names: tuple[str, ...] = ("here", "there")) -> None:
        self.now_s = 0.0
        self.outcomes: list[Outcome] = []
        self.sent: list[tuple[str, str, BlobMessage]] = []
        self.on_sent: Callable[[str, str, BlobMessage], None] = lambda *_: None
        self._link, self._random, self._serial = link, random.Random(seed), count()
        self._events: list[tuple[float, int, str, str, bytes]] = []
        self._free_s: dict[str, float] = {}
        self.folders = {name: BlobFolder(folder / name) for name in names}
        self.peers = {name: self.peer(name) for name in names}

    def peer(self, name: str, **limits: Any) -> BlobExchange:
        """A (new) exchange of this name on its folder, as after a restart of its process."""
        return BlobExchange(self.folders[name], lambda to, message: self.carry(name, to, message), **limits)

    def fetch(self, receiver: str, sender: str, digest: str, size_bytes: int) -> None:
        self.outcomes += self.peers[receiver].fetch(sender, digest, size_bytes, self.now_s)

    def carry(self, sender: str, receiver: str, message: BlobMessage) -> None:
        """Put a message on the link, where it may be lost, garbled or repeated."""
        self.sent.append((sender, receiver, message))
        self.on_sent(sender, receiver, message)
        while self._random.random() >= self._link.loss:
            payload = encode(self._garbled(message))
            self._free_s[sender] = max(self._free_s.get(sender, 0), self.now_s) + len(payload) / self._link.bytes_per_s
            at_s = self._free_s[sender] + self._link.delay_s + self._random.random() * self._link.jitter_s
            heapq.heappush(self._events, (at_s, next(self._serial), sender, receiver, payload))
            if self._random.random() >= self._link.repeat:
                return

    def run(self, *, until_s: float = 10_000.0, ticking: bool = True) -> None:
        """Deliver and tick once a second until nobody fetches any more, or until that time."""
        tick_s = self.now_s + 1
        while self.now_s < until_s and any(peer.unfinished for peer in self.peers.values()):
            if not self._events and not ticking:
                return
            if self._events and self._events[0][0] <= tick_s:
                self.now_s, _, sender, receiver, payload = heapq.heappop(self._events)
                message = decode_from_coordinator(payload)
                assert isinstance(message, BlobMessage)
                self.outcomes += self.peers[receiver].handle(sender, message, self.now_s)
                continue
            self.now_s, tick_s = tick_s, tick_s + 1
            if ticking:
                for peer in self.peers.values():
                    self.outcomes += peer.tick(self.now_s)

    def chunk_bytes_sent(self, sender: str) -> int:
        return sum(len(m.data) for who, _, m in self.sent if who == sender and isinstance(m, Chunk))

    def requests(self, sender: str) -> list[ChunkRequest]:
        return [m for who, _, m in self.sent if who == sender and isinstance(m, ChunkRequest)]

    def close(self) -> None:
        for peer in self.peers.values():
            peer.close()

    def _garbled(self, message: BlobMessage) -> BlobMessage:
        if not isinstance(message, Chunk) or self._random.random() >= self._link.garble:
            return message
        data = bytearray(message.data)
        data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return msgspec.structs.replace(message, data=bytes(data))
