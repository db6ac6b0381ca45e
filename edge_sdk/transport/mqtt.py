"""MQTT over paho, at QoS 1; nothing of paho is visible outside this file.

MQTT 5 where the broker speaks it, else 3.1.1: everything that the protocol needs is in the payloads. The session ends
with the connection and nothing is stored for an absent client: a broker may lose what it acknowledged, so the
application resends whatever matters, and a stored session would only deliver it twice.

Memory stays bounded both ways without ever blocking paho's thread, which must keep answering pings. Inwards, a message
is acknowledged when :meth:`MqttTransport.receive` hands it out, so that MQTT's Receive Maximum (with 3.1.1 the broker's
own limit) bounds the queue and the rest waits at the broker. Outwards, ``publish`` drops what exceeds ``_MAX_UNSENT``.
Of those, 20 are on their way at once: paho's default, and the Receive Maximum that mosquitto grants.
"""

from __future__ import annotations

import logging
import random
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from paho.mqtt.client import MQTT_ERR_QUEUE_SIZE, Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_sdk.errors import BrokerUnreachableError, ConfigurationError
from edge_sdk.protocol.messages import LEAST_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES
from edge_sdk.transport.address import (
    BrokerAddress,
    BrokerSettings,
    Credentials,
    MqttVersion,
    refuse_plaintext,
    show_certificate,
    tls_context,
    why_refused,
    why_unreachable,
)
from edge_sdk.transport.base import BulkRoom, Incoming, LinkDown, LinkUp, Will
from edge_sdk.transport.lane import Lane

_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 2.0
_KEEPALIVE_S = 60
_MAX_UNREAD = 64
_MAX_UNSENT = 512
_TRY_AGAIN_S = (0.2, 0.4)
_RECONNECT_FIRST_S = (0.5, 2.0)
_RECONNECT_LAST_S = (20.0, 60.0)
_PACKET_OVERHEAD_BYTES = 256  # the topic and MQTT's own bytes
_UNSPECIFIED, _OTHER_VERSION, _PACKET_TOO_LARGE = 128, 132, 149  # MQTT 5's reason codes
_TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux alone has it


class MqttTransport:
    """A :class:`edge_sdk.transport.base.Transport` to one broker as one client.

    Raises ``ConfigurationError`` for a plaintext address off this machine, unless ``allow_plaintext``. TLS trusts the
    system's certificate authorities, or those in ``ca_file`` alone, and shows the certificate in ``certificate_file``,
    which is read again before every connection: it may be renewed meanwhile.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        filters: Sequence[str],
        *,
        will: Will | None = None,
        credentials: Credentials | None = None,
        ca_file: Path | None = None,
        certificate_file: Path | None = None,
        key_file: Path | None = None,
        allow_plaintext: bool = False,
        version: MqttVersion = MqttVersion.ANY,
        keepalive_s: int = _KEEPALIVE_S,
    ) -> None:
        refuse_plaintext(address, allow_plaintext=allow_plaintext)
        self._address, self._client_id, self._filters = address, client_id, tuple(filters)
        self._will, self._credentials = will, credentials
        self._certificate = None if certificate_file is None else (certificate_file, key_file)
        self._tls = tls_context(ca_file, certificate_file, key_file) if address.tls else None
        self._version, self._keepalive_s = version, keepalive_s
        self._queue: SimpleQueue[tuple[object, _Unacknowledged | None]] = SimpleQueue()
        self._lane = Lane()
        self._sending = threading.Lock()  # the end of a link finds in the lane whatever was sent on it
        self._most_bytes = MAX_PAYLOAD_BYTES
        self._up = self._is_old_broker = self._is_cut_off = False
        self._session = self._cuts = 0
        self._refusal = self._said = ""
        self._settled = threading.Event()
        self._ended = threading.Event()
        self._client = self._make_client()

    @classmethod
    def of(
        cls, settings: BrokerSettings, client_id: str, filters: Sequence[str] = (), *, will: Will | None = None
    ) -> MqttTransport:
        """As ``settings`` say."""
        return cls(
            BrokerAddress.parse(settings.broker or ""),
            client_id,
            filters,
            will=will,
            credentials=None if settings.user is None else Credentials(settings.user, settings.password or ""),
            ca_file=settings.ca_file,
            certificate_file=settings.certificate_file,
            key_file=settings.key_file,
            allow_plaintext=settings.allow_plaintext,
            version=settings.mqtt_version,
        )

    @property
    def spoken(self) -> MqttVersion:
        """What the client and the broker speak, once they are connected."""
        return MqttVersion.V5 if self._version is MqttVersion.ANY else self._version

    def connect(self) -> None:
        """Connect and subscribe, within seconds; ``BrokerUnreachableError`` where that fails.

        A link that is cut before it is up may be a bad one, or lead to what is no broker: it is tried a few times.
        """
        self._open()
        if self._is_old_broker and self._version is MqttVersion.ANY:
            _log.warning("the broker at %s does not speak MQTT 5; going on with 3.1.1", self._address)
            self._version = MqttVersion.V311
            self._open_again()
        for pause_s in _TRY_AGAIN_S:
            if self._is_cut_off:
                time.sleep(pause_s)
                self._open_again()
        if self._refusal:
            why = (self._why_not_taken() if self._is_cut_off else "") or self._refusal
            raise BrokerUnreachableError(f"broker at {self._address} refuses {self._client_id!r}: {why}")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, bulk: bool = False) -> None:
        """Queue a message for sending; dropped while the link is down or too many wait to be acknowledged."""
        if self._up and len(payload) > self._most_bytes:
            _log.error("a message of %d bytes is not sent: %s", len(payload), _limit_words(self._most_bytes))
            return
        with self._sending:
            if not self._up:
                return
            info = self._client.publish(topic, payload, qos=1, retain=retain)
            if info.rc != MQTT_ERR_QUEUE_SIZE:
                self._lane.sent(info.mid, len(payload), bulk=bulk)

    def bulk_room(self) -> int:
        """The most bytes of a bulk message that may be published now; :class:`BulkRoom` comes when 0 has passed."""
        return self._most_bytes if self._up and self._lane.has_room() else 0

    def receive(self, timeout_s: float) -> object:
        """The next delivery or injected object, which acknowledges it to the broker; ``None`` after ``timeout_s``."""
        try:
            delivery, unacknowledged = self._queue.get(timeout=timeout_s)
        except Empty:
            return None
        if unacknowledged is not None and unacknowledged.session == self._session:
            self._client.ack(unacknowledged.message_id, 1)
        return delivery

    def unread(self) -> int:
        """How many deliveries wait for :meth:`receive`; more may wait at the broker."""
        return self._queue.qsize()

    def inject(self, delivery: object) -> None:
        """Put something into the receive queue, from any thread."""
        self._queue.put((delivery, None))

    def close(self) -> None:
        """Send what is queued, disconnect without a will, stop; a dead link is cut after two seconds. Idempotent."""
        self._up = False
        self._client.disconnect()
        if not self._ended.wait(_CLOSE_TIMEOUT_S if self._client.socket() else 0.0):
            _cut(self._client.socket())
        self._client.loop_stop()
        _discard(self._client.socket())

    def _open_again(self) -> None:
        self._refusal, self._is_cut_off = "", False
        self._settled.clear()
        self._client = self._make_client()
        self._open()

    def _open(self) -> None:
        """Up afterwards, or with a refusal and closed."""
        try:
            self._client.connect(self._address.host, self._address.port, self._keepalive_s, **self._of_version_5())
        except OSError as error:
            _discard(self._client.socket())
            raise BrokerUnreachableError(why_unreachable(self._address, error)) from error
        self._client.loop_start()
        if not self._settled.wait(_CONNECT_TIMEOUT_S):
            self._refuse(
                f"no MQTT answer within {_CONNECT_TIMEOUT_S:.0f} s; check the port, and that the broker has files left "
                "for connections (its `ulimit -n`)"
            )
        if self._refusal:
            self.close()

    def _of_version_5(self) -> dict[str, Any]:
        if self._version is MqttVersion.V311:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = _MAX_UNREAD
        return {"clean_start": True, "properties": properties}

    def _make_client(self) -> Client:
        client = _client(self._client_id, self._version)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._credentials is not None:
            client.username_pw_set(self._credentials.user, self._credentials.password)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        client.on_socket_open = _on_socket_open
        client.on_connect, client.on_connect_fail = self._on_connect, self._on_connect_fail
        client.on_subscribe, client.on_disconnect = self._on_subscribe, self._on_disconnect
        client.on_message, client.on_publish = self._on_message, self._on_publish
        return client

    @property
    def _kind_of_port(self) -> str:
        return "MQTT over TLS" if self._tls else "MQTT without TLS"

    # -- called by paho's thread: none of these may block or raise

    def _on_connect(
        self, client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._ended.clear()
        packet_bytes = getattr(properties, "MaximumPacketSize", None)
        if packet_bytes is not None:
            self._most_bytes = min(self._most_bytes, packet_bytes - _PACKET_OVERHEAD_BYTES)
        if reason.is_failure:
            self._is_old_broker = reason.value == _OTHER_VERSION
            wrong = "the MQTT version" if self._is_old_broker else "user name, password and client id"
            self._refuse(f"{reason}: check {wrong}")
        elif self._most_bytes < LEAST_PAYLOAD_BYTES:
            self._refuse(f"{_limit_words(self._most_bytes)}; at least {LEAST_PAYLOAD_BYTES} are needed")
        elif self._filters:
            client.subscribe(self._subscriptions())
        else:
            self._link_up()

    def _subscriptions(self) -> list[Any]:
        options: Any = 1 if self._version is MqttVersion.V311 else SubscribeOptions(qos=1)
        return [(topic, options) for topic in self._filters]

    def _on_connect_fail(self, _client: Client, _data: object) -> None:
        """A connection was lost and is not to be had again yet; paho calls this where it handles the error."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._say(why_unreachable(self._address, error))

    def _on_subscribe(self, _client: Client, _data: object, _id: int, reasons: list[ReasonCode], _: object) -> None:
        refused = [name for name, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if refused:
            self._refuse(f"no subscription to {refused[0]!r} is allowed")
        else:
            self._link_up()

    def _on_disconnect(
        self, _client: Client, _data: object, _flags: DisconnectFlags, reason: ReasonCode, _: object
    ) -> None:
        self._session += 1
        with self._sending:
            words = self._why_cut(reason)
            was_up, self._up = self._up, False
            self._forget_bulk()
        if was_up:
            self.inject(LinkDown(words))
        elif self._settled.is_set() and (why := self._why_not_taken()):
            self._say(f"broker at {self._address} refuses {self._client_id!r}: {why}")
        if not self._settled.is_set():
            self._is_cut_off = True
            self._refuse(
                f"it closed the connection ({words}); check that the port is for {self._kind_of_port}, and that the "
                "broker has files left for connections (its `ulimit -n`)"
            )
        self._show_newest_certificate()
        self._ended.set()

    def _why_not_taken(self) -> str:
        """What the broker has against the certificate, or "". It asks once more, while there is no link to keep up."""
        try:
            return "" if self._tls is None else why_refused(self._address, self._tls)
        except OSError:
            return ""

    def _show_newest_certificate(self) -> None:
        if self._tls is not None and self._certificate is not None:
            try:
                show_certificate(self._tls, *self._certificate)
            except ConfigurationError as error:
                self._say(str(error))

    def _forget_bulk(self) -> None:
        """Who still wants it asks again. paho would send it again, and be cut off again where it is too large."""
        with self._client._out_message_mutex:  # noqa: SLF001 paho has no other way to take a message back
            for message_id in self._lane.forget_bulk():
                self._client._out_messages.pop(message_id, None)  # noqa: SLF001

    def _why_cut(self, reason: ReasonCode) -> str:
        """In words. A broker that cuts off twice what is larger than all that it ever took gets no more so large."""
        words = "no reason given" if reason.value == _UNSPECIFIED else str(reason)
        largest, taken = self._lane.largest_bytes(), max(self._lane.taken_bytes, LEAST_PAYLOAD_BYTES)
        self._cuts += largest > taken
        if largest <= taken or (reason.value != _PACKET_TOO_LARGE and self._cuts < 2):
            return words
        self._most_bytes = min(self._most_bytes, taken)
        return f"{words}; a message of {largest} bytes may exceed its limit on packets (mosquitto: max_packet_size)"

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        _acknowledge_tcp_now(client)
        unacknowledged = _Unacknowledged(message.mid, self._session) if message.qos else None
        try:
            self._queue.put((Incoming(message.topic, bytes(message.payload)), unacknowledged))
        except UnicodeDecodeError:  # a topic that is not text cannot be ours; raising would end paho's thread
            return

    def _on_publish(self, client: Client, _data: object, message_id: int, reason: ReasonCode, _: object) -> None:
        _acknowledge_tcp_now(client)
        if reason.is_failure:
            self._say(f"the broker at {self._address} refuses a message: {reason}")
        if self._lane.acknowledged(message_id):
            self.inject(BulkRoom())

    def _link_up(self) -> None:
        self._up = True
        self._said = ""
        self.inject(LinkUp())
        self._settled.set()

    def _refuse(self, reason: str) -> None:
        """While :meth:`connect` waits, it will say so; later, when a connection comes again, the log does."""
        if not self._settled.is_set():
            self._refusal = reason
            self._settled.set()
        else:
            self._say(f"the broker at {self._address} refuses {self._client_id!r}: {reason}")
            _cut(self._client.socket())

    def _say(self, words: str) -> None:
        if words != self._said:
            _log.warning("%s", words)
        self._said = words


@dataclass(frozen=True, slots=True)
class _Unacknowledged:
    """Which message to acknowledge, and on which connection: on a later one its id means another message."""

    message_id: int
    session: int


def _client(client_id: str, version: MqttVersion) -> Client:
    is_old = version is MqttVersion.V311
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=True if is_old else None,
        protocol=MQTTProtocolVersion.MQTTv311 if is_old else MQTTProtocolVersion.MQTTv5,
        manual_ack=True,
    )
    client.connect_timeout = _CONNECT_TIMEOUT_S
    client.max_queued_messages_set(_MAX_UNSENT)
    _draw_reconnect_delays(client)
    return client


def _limit_words(most_bytes: int) -> str:
    return f"it takes messages of at most {most_bytes} bytes: raise its limit on packets (mosquitto: max_packet_size)"


def _draw_reconnect_delays(client: Client) -> None:
    """First and longest wait, drawn by each client, so that a fleet does not come back at one instant."""
    first_s, last_s = random.uniform(*_RECONNECT_FIRST_S), random.uniform(*_RECONNECT_LAST_S)  # noqa: S311 no secret
    client.reconnect_delay_set(first_s, last_s)  # type: ignore[arg-type]  # paho only adds and doubles them


def _on_socket_open(_client: Client, _data: object, opened: object) -> None:
    """Send at once: with Nagle's delay, 40 bytes there and back took 44 ms instead of 0.6 ms."""
    if isinstance(opened, socket.socket):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _acknowledge_tcp_now(client: Client) -> None:
    """Have the kernel acknowledge what it holds back (up to 40 ms) in the hope of data to send along.

    Brokers mostly leave Nagle's algorithm on, and then the next small message waits for that acknowledgement. Linux
    forgets the option with every use, hence at every message: 40 MB took 0.5 s with it, 2.0 s without.
    """
    opened = client.socket()
    if _TCP_QUICKACK is not None and isinstance(opened, socket.socket):
        opened.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)


def _cut(opened: object) -> None:
    """Wake paho out of its wait on a link that no longer answers."""
    if isinstance(opened, socket.socket):
        with suppress(OSError):  # not connected any more
            opened.shutdown(socket.SHUT_RDWR)


def _discard(opened: object) -> None:
    """Close what a handshake that failed half-way left open."""
    if isinstance(opened, socket.socket):
        opened.close()
