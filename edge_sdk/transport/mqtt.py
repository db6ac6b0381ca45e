"""MQTT 5 over paho, at QoS 1; nothing of paho is visible outside this file.

The session ends with the connection (session expiry 0) and nothing is stored for an absent client: a broker may lose
what it acknowledged, so the application resends whatever matters, and a stored session would only deliver it twice.

Memory stays bounded both ways without ever blocking paho's thread, which must keep answering pings. Inwards, a message
is acknowledged when :meth:`MqttTransport.receive` hands it out, so that MQTT's Receive Maximum limits the queue to
``_MAX_UNREAD`` messages and the rest waits at the broker. Outwards, ``publish`` drops what exceeds ``_MAX_UNSENT``. Of
those, 20 are on their way at once: paho's default, and the Receive Maximum that mosquitto grants.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_sdk.errors import BrokerUnreachableError, ConfigurationError
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp, Will

_CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 2.0
_KEEPALIVE_S = 60  # a chunk takes 16 s at 64 kbit/s: less than half of this
_MAX_UNREAD = 64
_MAX_UNSENT = 512
_RECONNECT_FIRST_S = (0.5, 2.0)
_RECONNECT_LAST_S = (20.0, 60.0)
_TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux alone has it
_X509_UNTIMELY = {9, 10}  # of OpenSSL: not yet valid, expired
_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens: ``mqtt://host:port``, or ``mqtts://host:port`` for TLS."""

    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """Read an address, with or without a port. ``ConfigurationError`` for anything else; it quotes no password."""
        try:
            parts = urlsplit(text)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError as error:
            msg = f"broker address cannot be read ({error}): use mqtt://host:port or mqtts://host:port"
            raise ConfigurationError(msg) from error
        if "@" in parts.netloc:
            msg = f"broker address for {host!r} holds a user name or password: give them apart from the address"
            raise ConfigurationError(msg)
        if scheme not in _DEFAULT_PORTS or not host or port == 0 or parts.path.strip("/") or parts.query:
            msg = f"broker address {text!r} is not of the form mqtt://host:port or mqtts://host:port"
            raise ConfigurationError(msg)
        return cls(host, port or _DEFAULT_PORTS[scheme], scheme == "mqtts")

    def __str__(self) -> str:
        """The address in the form that :meth:`parse` reads."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether bytes to this address stay on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password for the broker; the password stays out of logs and tracebacks."""

    user: str
    password: str = field(repr=False)


class MqttTransport:
    """A :class:`edge_sdk.transport.base.Transport` to one broker as one client.

    Raises ``ConfigurationError`` for a plaintext address off this machine, unless ``allow_plaintext``. TLS trusts the
    system's certificate authorities, or those in ``ca_file`` alone.
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
        allow_plaintext: bool = False,
    ) -> None:
        _refuse_plaintext(address, allow_plaintext=allow_plaintext)
        self._address = address
        self._filters = tuple(filters)
        self._queue: SimpleQueue[tuple[object, _Unacknowledged | None]] = SimpleQueue()
        self._up = False
        self._session = 0
        self._refusal = ""
        self._settled = threading.Event()
        self._ended = threading.Event()
        self._client = _client(client_id, credentials, _tls_context(address, ca_file))
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._listen()

    def connect(self) -> None:
        """Connect and subscribe, within seconds; ``BrokerUnreachableError`` where that fails."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = _MAX_UNREAD
        try:
            self._client.connect(
                self._address.host, self._address.port, _KEEPALIVE_S, clean_start=True, properties=properties
            )
        except OSError as error:
            _discard(self._client.socket())
            msg = f"no broker answers at {self._address} ({error}): {_advice(error)}"
            raise BrokerUnreachableError(msg) from error
        self._client.loop_start()
        if not self._settled.wait(_CONNECT_TIMEOUT_S):
            self._refuse(f"no MQTT answer within {_CONNECT_TIMEOUT_S:.0f} s")
        if self._refusal:
            self.close()
            msg = f"broker at {self._address} refuses {self._client_id!r}: {self._refusal}"
            raise BrokerUnreachableError(msg)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Queue a message for sending; dropped while the link is down or too many wait to be acknowledged."""
        if self._up:
            self._client.publish(topic, payload, qos=1, retain=retain)

    def receive(self, timeout_s: float) -> object:
        """The next delivery or injected object, which acknowledges it to the broker; ``None`` after ``timeout_s``."""
        try:
            delivery, unacknowledged = self._queue.get(timeout=timeout_s)
        except Empty:
            return None
        if unacknowledged is not None and unacknowledged.session == self._session:
            self._client.ack(unacknowledged.message_id, 1)
        return delivery

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

    # -- called by paho's thread: none of these may block or raise

    @property
    def _client_id(self) -> str:
        return self._client._client_id.decode()  # noqa: SLF001 paho has no getter

    def _listen(self) -> None:
        self._client.on_socket_open = _on_socket_open
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = _on_publish

    def _on_connect(self, client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, _: object) -> None:
        self._ended.clear()
        if reason.is_failure:
            self._refuse(f"{reason}: check user name, password and client id")
        elif self._filters:
            client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._filters])
        else:
            self._link_up()

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
        if self._up:
            self._up = False
            self.inject(LinkDown(str(reason)))
        self._refuse(f"it closed the connection ({reason})")
        self._ended.set()

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        _acknowledge_tcp_now(client)
        unacknowledged = _Unacknowledged(message.mid, self._session) if message.qos else None
        try:
            self._queue.put((Incoming(message.topic, bytes(message.payload)), unacknowledged))
        except UnicodeDecodeError:  # a topic that is not text cannot be ours; raising would end paho's thread
            return

    def _link_up(self) -> None:
        self._up = True
        self.inject(LinkUp())
        self._settled.set()

    def _refuse(self, reason: str) -> None:
        if not self._settled.is_set():
            self._refusal = reason
            self._settled.set()


@dataclass(frozen=True, slots=True)
class _Unacknowledged:
    """Which message to acknowledge, and on which connection: on a later one its id means another message."""

    message_id: int
    session: int


def _client(client_id: str, credentials: Credentials | None, tls: ssl.SSLContext | None) -> Client:
    client = Client(
        CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
    )
    client.connect_timeout = _CONNECT_TIMEOUT_S
    client.max_queued_messages_set(_MAX_UNSENT)
    _draw_reconnect_delays(client)
    if tls is not None:
        client.tls_set_context(tls)
    if credentials is not None:
        client.username_pw_set(credentials.user, credentials.password)
    return client


def _draw_reconnect_delays(client: Client) -> None:
    """First and longest wait, drawn by each client, so that a fleet does not come back at one instant."""
    first_s, last_s = random.uniform(*_RECONNECT_FIRST_S), random.uniform(*_RECONNECT_LAST_S)  # noqa: S311 no secret
    client.reconnect_delay_set(first_s, last_s)  # type: ignore[arg-type]  # paho only adds and doubles them


def _on_socket_open(_client: Client, _data: object, opened: object) -> None:
    """Send at once: with Nagle's delay, 40 bytes there and back took 44 ms instead of 0.6 ms."""
    if isinstance(opened, socket.socket):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _on_publish(client: Client, _data: object, _id: int, _reason: ReasonCode, _: object) -> None:
    _acknowledge_tcp_now(client)


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


def _refuse_plaintext(address: BrokerAddress, *, allow_plaintext: bool) -> None:
    if not (address.tls or address.is_loopback or allow_plaintext):
        msg = f"{address} would send everything readable over the network: use mqtts://, or allow plaintext explicitly"
        raise ConfigurationError(msg)


def _advice(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _X509_UNTIMELY:
        now = time.strftime("%Y-%m-%d %H:%M %Z")
        return f"its certificate does not hold at {now}, which is what this machine's clock says; set what is wrong"
    return "check the address and that the broker runs"


def _tls_context(address: BrokerAddress, ca_file: Path | None) -> ssl.SSLContext | None:
    if not address.tls:
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        msg = f"certificate authorities cannot be read from {ca_file} ({error}): give a PEM file"
        raise ConfigurationError(msg) from error
