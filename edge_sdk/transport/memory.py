"""A broker in this process, for tests and simulations: MQTT's behaviour without sockets or threads of its own.

It keeps retained messages, publishes wills, understands ``+``, and can be stopped and started again, which loses the
retained messages as with the embedded broker.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from queue import Empty, Queue

from edge_sdk.errors import BrokerUnreachableError
from edge_sdk.protocol.messages import MAX_PAYLOAD_BYTES
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp, Will


class MemoryHub:
    """The broker: every :class:`MemoryTransport` made on one hub can reach the others."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._running = True
        self._members: list[MemoryTransport] = []
        self._retained: dict[str, bytes] = {}

    def stop(self) -> None:
        """Vanish as a killed broker does: every link goes down, retained messages are lost."""
        with self._lock:
            self._running = False
            self._retained.clear()
            for member in self._members:
                member.inject(LinkDown("the hub stopped"))

    def start(self) -> None:
        """Come back: every member that has not closed is connected again."""
        with self._lock:
            self._running = True
            for member in self._members:
                self._welcome(member)

    def drop(self, transport: MemoryTransport) -> None:
        """Cut one member's link for good, as if its process were killed: its will is published."""
        with self._lock:
            self.leave(transport)
            if transport.will is not None:
                self.route(transport.will.topic, transport.will.payload, retain=True)

    def join(self, transport: MemoryTransport) -> None:
        """Connect a member; ``BrokerUnreachableError`` while stopped."""
        with self._lock:
            if not self._running:
                msg = "no broker answers at memory: start the hub"
                raise BrokerUnreachableError(msg)
            self._members.append(transport)
            self._welcome(transport)

    def leave(self, transport: MemoryTransport) -> None:
        """Disconnect a member without a will; idempotent."""
        with self._lock:
            if transport in self._members:
                self._members.remove(transport)

    def route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Deliver to every member whose filters match; an empty retained payload erases, as in MQTT."""
        with self._lock:
            if not self._running:
                return
            if retain and payload:
                self._retained[topic] = payload
            elif retain:
                self._retained.pop(topic, None)
            for member in self._members:
                if member.wants(topic):
                    member.inject(Incoming(topic, payload))

    def holds(self, transport: MemoryTransport) -> bool:
        """Whether a member is connected now."""
        with self._lock:
            return self._running and transport in self._members

    def _welcome(self, transport: MemoryTransport) -> None:
        transport.inject(LinkUp())
        for topic, payload in self._retained.items():
            if transport.wants(topic):
                transport.inject(Incoming(topic, payload))


class MemoryTransport:
    """A :class:`edge_sdk.transport.base.Transport` on a :class:`MemoryHub`."""

    def __init__(self, hub: MemoryHub, filters: Sequence[str], *, will: Will | None = None) -> None:
        self.will = will
        self._hub = hub
        self._wanted = re.compile("|".join(map(_pattern, filters)))
        self._queue: Queue[object] = Queue()

    def connect(self) -> None:
        """Join the hub; ``BrokerUnreachableError`` while it is stopped."""
        self._hub.join(self)

    def bulk_room(self) -> int:
        """The largest payload, always: nothing ever waits here."""
        return MAX_PAYLOAD_BYTES

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, bulk: bool = False) -> bool:
        """Deliver at once; dropped while the link is down. Nothing is too large."""
        del bulk
        if self._hub.holds(self):
            self._hub.route(topic, payload, retain=retain)
        return True

    def receive(self, timeout_s: float) -> object:
        """The next delivery or injected object; ``None`` after ``timeout_s``."""
        try:
            return self._queue.get(timeout=timeout_s)
        except Empty:
            return None

    def unread(self) -> int:
        """How many deliveries wait for :meth:`receive`."""
        return self._queue.qsize()

    def inject(self, delivery: object) -> None:
        """Put something into the receive queue, from any thread."""
        self._queue.put(delivery)

    def close(self) -> None:
        """Leave the hub without a will; idempotent."""
        self._hub.leave(self)

    def wants(self, topic: str) -> bool:
        """Whether one of this member's filters matches ``topic``."""
        return self._wanted.fullmatch(topic) is not None


def _pattern(wanted: str) -> str:
    """The regular expression of an MQTT filter."""
    return "/".join("[^/]*" if level == "+" else re.escape(level) for level in wanted.split("/"))
