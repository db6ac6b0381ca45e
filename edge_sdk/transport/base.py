"""What the rest of the house asks of a transport: publish, receive, and to be told when the link comes and goes.

A transport delivers to one queue, so that its user is a plain loop. It may lose messages and may deliver one twice
(QoS 1 behind a broker that restarts does both): whoever needs more resends until the application answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message as it came: ``topic`` as the broker wrote it, ``payload`` not yet decoded."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The transport is connected (again) and subscribed: say who you are, resend what matters."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link is gone; the transport reconnects by itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class BulkRoom:
    """Bulk may be published again, after ``bulk_room`` said that there was no room."""


Delivery = Incoming | LinkUp | LinkDown | BulkRoom


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when this client vanishes."""

    topic: str
    payload: bytes


class Transport(Protocol):
    """Two real implementations: :mod:`edge_sdk.transport.mqtt` and :mod:`edge_sdk.transport.memory`."""

    def connect(self) -> None:
        """Connect and subscribe; returns once connected. ``BrokerUnreachableError`` where nobody answers."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, bulk: bool = False) -> None:
        """Hand a message over; returns at once. While the link is down, messages may be dropped."""

    def bulk_room(self) -> int:
        """The most bytes of a ``bulk`` message that may be published now; 0 while enough of them are on their way.

        After a 0, :class:`BulkRoom` is delivered when there is room. So what is not bulk never waits behind more than
        a few bulk messages.
        """

    def receive(self, timeout_s: float) -> object:
        """The next :data:`Delivery` or injected object, in the order of arrival; ``None`` after ``timeout_s``."""

    def unread(self) -> int:
        """How many deliveries wait for :meth:`receive`."""

    def inject(self, delivery: object) -> None:
        """Put something of the user's own into the receive queue, from any thread: how workers wake the loop."""

    def close(self) -> None:
        """Disconnect politely; idempotent."""
