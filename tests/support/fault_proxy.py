"""TCP between a client and its broker, through weather: what a bad link does to it follows from a seed.

    with FaultProxy(seed) as proxy:
        address = proxy.gate("device-3", broker.address, Weather(resets=0.05, delay_s=0.2, bytes_per_s=8000))

Each client gets a gate of its own. A fault sits at a byte of a direction of the gate's n-th connection, and nowhere
else: so the same seed replays it at the same place in the conversation, however fast or slow the machine is. TCP itself
repairs loss and order; what is left of those is delay, and connections that end or fall silent.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from typing import Any

from edge_sdk.transport.address import BrokerAddress

BLOCK_BYTES = 16 * 1024
_PIECES_UNDER_WAY = 64
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, for no time at all
_PATIENCE_S = 10.0


class Fault(str, Enum):
    """What happens to a connection at one of its bytes.

    ``RESET``: both ends get a TCP reset. ``CLOSE``: both are closed in the middle of a packet. ``SILENCE``: nothing
    passes for a while, then all that was sent meanwhile. ``HALF_OPEN``: the broker's end is reset, and the client hears
    nothing of it for a while. ``GARBLE``: one bit comes out wrong.
    """

    RESET = "reset"
    CLOSE = "close"
    SILENCE = "silence"
    HALF_OPEN = "half-open"
    GARBLE = "garble"


@dataclass(frozen=True)
class Weather:
    """What a link suffers: each fault's share of the blocks of 16 KiB that a direction carries.

    ``delay_s`` is the most that a direction delays its bytes, ``silence_s`` how long silence lasts at most;
    ``bytes_per_s`` is for each direction, ``None`` for as fast as it goes.
    """

    resets: float = 0.0
    closes: float = 0.0
    silences: float = 0.0
    half_opens: float = 0.0
    garbles: float = 0.0
    silence_s: float = 1.0
    delay_s: float = 0.0
    bytes_per_s: float | None = None


@dataclass(frozen=True)
class Place:
    """A direction of the n-th connection of a gate."""

    seed: int
    gate: str
    connection: int
    direction: str

    def draw(self, what: object) -> random.Random:
        """Random numbers of its own for every ``what``, so that none moves another's."""
        return random.Random(f"{self.seed} {self.gate} {self.connection} {self.direction} {what}")


def fault_in(weather: Weather, place: Place, block: int) -> tuple[Fault, int] | None:
    """What happens in the n-th block of a direction, and at which of the block's bytes."""
    drawn = place.draw(block)
    at, chance = drawn.randrange(BLOCK_BYTES), drawn.random()
    shares = (weather.resets, weather.closes, weather.silences, weather.half_opens, weather.garbles)
    for fault, share in zip(Fault, shares, strict=True):
        if chance < share:
            return fault, at
        chance -= share
    return None


@dataclass(eq=False)
class _Connection:
    """Two ends, and until when nothing passes between them."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    silent_until_s: float = 0.0

    def reset(self, *ends: asyncio.StreamWriter) -> None:
        """These ends, or both."""
        for end in ends or (self.client, self.broker):
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.transport.abort()

    def close(self) -> None:
        self.client.close()
        self.broker.close()


@dataclass
class _Gate:
    """One client's way to its broker."""

    name: str
    target: BrokerAddress
    weather: Weather
    numbers: count[int] = field(default_factory=count)
    connections: set[_Connection] = field(default_factory=set)


@dataclass
class _Way:
    """One direction of one connection; ``pieces`` are under way, each with when it is to arrive."""

    place: Place
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pieces: asyncio.Queue[tuple[float, bytes]] = field(default_factory=lambda: asyncio.Queue(_PIECES_UNDER_WAY))
    position: int = 0


class FaultProxy:
    """Gates on loopback, served by a thread of its own while the context is open.

    ``happened`` counts the faults that did happen, ``carried_bytes`` what passed; a proxy that ``taps`` keeps that in
    ``tapped``.
    """

    def __init__(self, seed: int, *, taps: bool = False) -> None:
        self.seed = seed
        self.happened: Counter[Fault] = Counter()
        self.carried_bytes = 0
        self.tapped: list[bytes] | None = [] if taps else None
        self._gates: dict[str, _Gate] = {}
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def __enter__(self) -> FaultProxy:  # noqa: PYI034 - Self needs Python 3.11
        print(f"weather from seed {self.seed}")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()

    def gate(self, name: str, target: BrokerAddress, weather: Weather | None = None) -> BrokerAddress:
        """Open a way to ``target``: the address for the one client that takes it."""
        self._gates[name] = _Gate(name, target, weather or Weather())
        port = self._do(self._listen(self._gates[name]))
        return replace(target, host="127.0.0.1", port=port)

    def change(self, weather: Weather, *names: str) -> None:
        """Other weather from the next byte on, at these gates or at all."""
        for name in names or self._gates:
            self._gates[name].weather = weather

    def cut(self, *names: str) -> None:
        """Reset what is connected now, at these gates or at all."""
        self._do(self._cut(names or tuple(self._gates)))

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    # -- on the thread of the loop

    async def _listen(self, gate: _Gate) -> int:
        server = await asyncio.start_server(lambda r, w: self._accept(gate, r, w), "127.0.0.1", 0, limit=BLOCK_BYTES)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _cut(self, names: tuple[str, ...]) -> None:
        for connection in [connection for name in names for connection in self._gates[name].connections]:
            connection.reset()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        await self._cut(tuple(self._gates))
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports close themselves a step later

    async def _accept(self, gate: _Gate, near: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            far, broker = await asyncio.open_connection(gate.target.host, gate.target.port, limit=BLOCK_BYTES)
        except OSError:
            client.transport.abort()
            return
        connection, number = _Connection(client, broker), next(gate.numbers)
        ways = (
            _Way(Place(self.seed, gate.name, number, "up"), near, broker),
            _Way(Place(self.seed, gate.name, number, "down"), far, client),
        )
        gate.connections.add(connection)
        with suppress(asyncio.CancelledError):  # at the end of the test
            await _until_one_ends(
                work
                for way in ways
                for work in (self._take(gate, connection, way), self._deliver(gate, connection, way))
            )
        gate.connections.discard(connection)
        connection.close()

    async def _take(self, gate: _Gate, connection: _Connection, way: _Way) -> None:
        """Read what an end sends and put it under way, until a fault ends the connection."""
        delay_s = way.place.draw("delay").random()
        while piece := await _read(way.reader, BLOCK_BYTES - way.position % BLOCK_BYTES):
            block, start = divmod(way.position, BLOCK_BYTES)
            way.position += len(piece)
            fault, at = fault_in(gate.weather, way.place, block) or (None, -1)
            if fault is not None and start <= at < start + len(piece):
                self.happened[fault] += 1
                piece = await self._suffer(fault, gate, connection, way, piece, at - start)
                if piece is None:
                    return
            await way.pieces.put((self._loop.time() + delay_s * gate.weather.delay_s, piece))
        await way.pieces.put((self._loop.time(), b""))
        await asyncio.Event().wait()  # what is under way arrives first

    async def _suffer(
        self, fault: Fault, gate: _Gate, connection: _Connection, way: _Way, piece: bytes, at: int
    ) -> bytes | None:
        """What is left of ``piece``; ``None`` where the connection has ended."""
        silence_s = way.place.draw("silence").uniform(0.2, 1.0) * gate.weather.silence_s
        match fault:
            case Fault.GARBLE:
                return piece[:at] + bytes([piece[at] ^ 1 << way.place.draw("bit").randrange(8)]) + piece[at + 1 :]
            case Fault.SILENCE:
                connection.silent_until_s = self._loop.time() + silence_s
                return piece
            case Fault.CLOSE:
                way.writer.write(piece[:at])
                return None
            case Fault.HALF_OPEN:
                connection.silent_until_s = self._loop.time() + 2 * silence_s
                connection.reset(connection.broker)
                await asyncio.sleep(silence_s)
        connection.reset()
        return None

    async def _deliver(self, gate: _Gate, connection: _Connection, way: _Way) -> None:
        """Bring what is under way to the other end, in its time."""
        while True:
            due_s, piece = await way.pieces.get()
            await asyncio.sleep(due_s - self._loop.time())
            await asyncio.sleep(connection.silent_until_s - self._loop.time())
            if not piece:
                return
            if gate.weather.bytes_per_s is not None:
                await asyncio.sleep(len(piece) / gate.weather.bytes_per_s)
            way.writer.write(piece)
            self.carried_bytes += len(piece)
            if self.tapped is not None:
                self.tapped.append(piece)
            with suppress(OSError):
                await way.writer.drain()


async def _read(reader: asyncio.StreamReader, most_bytes: int) -> bytes:
    try:
        return await reader.read(most_bytes)
    except OSError:
        return b""


async def _until_one_ends(works: Any) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
