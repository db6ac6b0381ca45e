"""The interface of a transport: publish, receive, and notice when the link goes up or down.

A transport delivers to one queue, so that its user is a plain loop. It may lose messages, and may deliver one twice
(QoS 1 behind a broker that restarts does both): whoever needs more has to resend until the application answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message: its topic, and its payload, which is not decoded yet."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The transport is connected (again) and subscribed: its user should say hello and resend what matters."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link is down; the transport reconnects by itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class BulkRoom:
    """Bulk messages may be published again, after ``bulk_room`` returned 0."""


Delivery = Incoming | LinkUp | LinkDown | BulkRoom


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when this client vanishes."""

    topic: str
    payload: bytes


class Transport(Protocol):
    """Two real implementations: :mod:`edge_sdk.transport.mqtt` and :mod:`edge_sdk.transport.memory`."""

    def connect(self) -> None:
        """Connect and subscribe; returns once connected.

        Raises ``BrokerUnreachableError``, after which it may be called again.
        """

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, bulk: bool = False) -> bool:
        """Queue a message for sending; returns at once. While the link is down, messages may be dropped.

        Returns ``False`` if it is larger than this broker takes, so that it is never sent; the log says so.
        """

    def bulk_room(self) -> int:
        """The size limit, in bytes, of a ``bulk`` message that may be published now; 0 while enough are in flight.

        After a 0, :class:`BulkRoom` is delivered when there is room again. So other messages never wait behind more
        than a few bulk messages.
        """

    def receive(self, timeout_s: float) -> object:
        """The next :data:`Delivery` or injected object, in order of arrival; ``None`` after ``timeout_s``."""

    def unread(self) -> int:
        """How many deliveries wait for :meth:`receive`."""

    def inject(self, delivery: object) -> None:
        """Put an object into the receive queue, from any thread: this is how workers wake the loop."""

    def close(self) -> None:
        """Disconnect politely; idempotent."""
