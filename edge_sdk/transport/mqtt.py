"""MQTT over paho, at QoS 1; nothing of paho is visible outside this file.

It speaks MQTT 5, or 3.1.1 if the broker does not: everything that the protocol needs is in the payloads. A session ends
with its connection, and nothing is stored for an absent client: a broker may lose what it has acknowledged, so the
application resends whatever matters, and a stored session would only deliver it twice.

Memory is bounded in both directions without ever blocking paho's thread, which must keep answering pings. An incoming
message is acknowledged when :meth:`MqttTransport.receive` returns it, so that MQTT's Receive Maximum (with 3.1.1 the
broker's own limit) bounds the queue; the rest waits at the broker, which is told the largest packet to send.
``publish`` drops outgoing messages beyond ``_MAX_UNSENT``. Of these, 20 are in flight at once, or as few as the broker
grants. What it has not acknowledged when the link ends is forgotten: sent again at once, all of it would exceed any
grant, and what is too large for the broker would cut every link to come.
"""

from __future__ import annotations

import errno
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
from queue import Empty, Queue
from typing import Any

from paho.mqtt.client import MQTT_ERR_QUEUE_SIZE, Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_sdk.errors import BrokerUnreachableError, ConfigurationError
from edge_sdk.protocol.messages import MAX_PAYLOAD_BYTES, MIN_PAYLOAD_BYTES
from edge_sdk.transport.address import (
    LAST_OF_SELECT,
    BeyondSelectError,
    BrokerAddress,
    BrokerSettings,
    Credentials,
    MqttVersion,
    refuse_plaintext,
    show_certificate,
    tls_context,
    trust_authorities,
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
_TRY_AGAIN_S = (0.2, 0.4)  # the pauses before further attempts to connect, if a link is cut before it is up
_RECONNECT_FIRST_S = (0.5, 2.0)  # each client draws its first and its longest pause from these
_RECONNECT_LAST_S = (20.0, 60.0)
_PACKET_OVERHEAD_BYTES = 256  # the topic and MQTT's own bytes
_MAX_ON_THEIR_WAY = 20
_UNSPECIFIED, _OTHER_VERSION, _TAKEN_OVER, _PACKET_TOO_LARGE, _NO_RETAIN = 128, 132, 142, 149, 154  # MQTT 5's codes
_BRIEF_S, _MANY_BRIEF = 5.0, 3  # an older broker does not say that it ends one link for another of the same name
_NOT_LET_IN = {133, 134, 135, 138, 140}
_RETAIN_ADVICE = "it keeps no retained messages, which are needed: have it keep them (mosquitto: retain_available)"
_TCP_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux alone has it


class MqttTransport:
    """A :class:`edge_sdk.transport.base.Transport` to one broker as one client.

    Raises ``ConfigurationError`` for an address on another machine without TLS, unless ``allow_plaintext``. TLS trusts
    the system's certificate authorities, or only those in ``ca_file``, and shows the certificate in
    ``certificate_file``. Both files are read again before every connection, since they may be renewed meanwhile.
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
        self._ca_file, self._certificate = ca_file, None if certificate_file is None else (certificate_file, key_file)
        self._tls = tls_context(ca_file, certificate_file, key_file) if address.tls else None
        self._version, self._keepalive_s = version, keepalive_s
        # no SimpleQueue: CPython's get of one waits for ever if a signal comes just before its timeout
        self._queue: Queue[tuple[object, _Unacknowledged | None]] = Queue()
        self._lane = Lane()
        self._sending = threading.Lock()  # so that a lost link finds everything that was sent on it in the lane
        self._max_bytes = self._guessed_bytes = MAX_PAYLOAD_BYTES
        self._pauses_s = _drawn_pauses_s()
        self._up = self._is_old_broker = self._is_cut_off = False
        self._session = self._cuts = self._brief_links = 0
        self._up_s = 0.0
        self._asked_s: float | None = None
        self._refusal = self._said = ""
        self._settled = threading.Event()
        self._ended = threading.Event()
        self._client = self._make_client()

    @classmethod
    def of(
        cls, settings: BrokerSettings, client_id: str, filters: Sequence[str] = (), *, will: Will | None = None
    ) -> MqttTransport:
        """A transport to the broker of ``settings``. Raises ``ConfigurationError``."""
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
        """The version that client and broker speak, once they are connected."""
        return MqttVersion.V5 if self._version is MqttVersion.ANY else self._version

    def connect(self) -> None:
        """Connect and subscribe within seconds; ``BrokerUnreachableError`` if that fails.

        If the connection is cut before it is up, the link may be bad, or the other side no broker: it is tried again
        twice. A broker that speaks only 3.1.1 may cut it, too, instead of saying so: the last try is in 3.1.1. After an
        error it may be called again.
        """
        self._open_anew()
        for pause_s in _TRY_AGAIN_S:
            if self._is_cut_off:
                time.sleep(pause_s)
                self._open_anew(is_last=pause_s == _TRY_AGAIN_S[-1])
        if self._is_old_broker and self._version is MqttVersion.ANY:
            self._open_anew(is_last=True)
        if self._refusal:
            why = (self._why_not_taken() if self._is_cut_off else "") or self._refusal
            raise BrokerUnreachableError(f"broker at {self._address} refuses {self._client_id!r}: {why}")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, bulk: bool = False) -> bool:
        """Queue a message for sending; it is dropped while the link is down, or if too many are unacknowledged.

        Returns ``False`` if it is larger than the broker takes; the log says so.
        """
        if self._up and len(payload) > self._max_bytes:
            _log.error("a message of %d bytes is not sent: %s", len(payload), _limit_words(self._max_bytes))
            return False
        with self._sending:
            info = self._client.publish(topic, payload, qos=1, retain=retain) if self._up else None
            if info is not None and info.rc != MQTT_ERR_QUEUE_SIZE:
                self._lane.sent(info.mid, len(payload), bulk=bulk)
        return True

    def bulk_room(self) -> int:
        """The size limit of a bulk message that may be published now; after a 0, :class:`BulkRoom` is delivered."""
        return self._max_bytes if self._up and self._lane.has_room() else 0

    def receive(self, timeout_s: float) -> object:
        """The next delivery or injected object, ``None`` after ``timeout_s``; acknowledges a message to the broker."""
        self._lose_patience()
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
        """Send what is queued, disconnect without a will, and stop; a dead link is cut after 2 s. Idempotent."""
        self._up = False
        self._client.disconnect()
        if not self._ended.wait(_CLOSE_TIMEOUT_S if self._client.socket() else 0.0):
            _cut(self._client.socket())
        self._client.loop_stop()
        _discard(self._client.socket())

    def _open_anew(self, *, is_last: bool = False) -> None:
        """Try once; if any version will do the last try is in 3.1.1, which stays if the broker lets this client in."""
        wanted, is_let_in = self._version, False
        self._version = MqttVersion.V311 if is_last and wanted is MqttVersion.ANY else wanted
        self._refusal, self._is_cut_off, self._is_old_broker = "", False, False
        self._settled.clear()
        self._client = self._make_client()
        try:
            self._open()
            is_let_in = not self._refusal
        finally:
            self._version = self._version if is_let_in else wanted
        if self._version is not wanted:
            _log.warning("the broker at %s does not speak MQTT 5; using 3.1.1", self._address)

    def _open(self) -> None:
        """Try to connect once; afterwards the link is up, or it is closed and there is a refusal."""
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

    def _lose_patience(self) -> None:
        """Cut a connection whose broker answers pings, and no subscription: no keep-alive would ever end it."""
        asked_s = self._asked_s
        if asked_s is not None and time.monotonic() - asked_s > self._keepalive_s:
            self._asked_s = None
            self._refuse(f"no answer to the subscription within {self._keepalive_s} s")

    def _of_version_5(self) -> dict[str, Any]:
        if self._version is MqttVersion.V311:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = _MAX_UNREAD
        properties.MaximumPacketSize = MAX_PAYLOAD_BYTES + _PACKET_OVERHEAD_BYTES
        return {"clean_start": True, "properties": properties}

    def _make_client(self) -> Client:
        client = _client(self._client_id, self._version)
        self._set_pause(client, self._pauses_s[0])
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
        self._obey(client, properties)
        if reason.is_failure:
            self._is_old_broker = reason.value == _OTHER_VERSION
            self._refuse(f"{reason}: {_advice(reason)}")
        elif getattr(properties, "RetainAvailable", 1) == 0:
            self._refuse(_RETAIN_ADVICE)
        elif self._max_bytes < MIN_PAYLOAD_BYTES:
            self._refuse(f"{_limit_words(self._max_bytes)}; at least {MIN_PAYLOAD_BYTES} are needed")
        elif self._filters:
            self._asked_s = time.monotonic()
            client.subscribe(self._subscriptions())
        else:
            self._link_up()

    def _obey(self, client: Client, properties: Properties | None) -> None:
        """What this broker takes, which may be another than before, or have been set up anew."""
        packet_bytes = getattr(properties, "MaximumPacketSize", None)
        told_bytes = self._guessed_bytes if packet_bytes is None else packet_bytes - _PACKET_OVERHEAD_BYTES
        self._max_bytes = min(MAX_PAYLOAD_BYTES, told_bytes)
        granted = getattr(properties, "ReceiveMaximum", _MAX_ON_THEIR_WAY)
        client._max_inflight_messages = max(1, min(_MAX_ON_THEIR_WAY, granted))  # noqa: SLF001 paho sets it before it connects

    def _subscriptions(self) -> list[Any]:
        options: Any = 1 if self._version is MqttVersion.V311 else SubscribeOptions(qos=1)
        return [(topic, options) for topic in self._filters]

    def _on_connect_fail(self, _client: Client, _data: object) -> None:
        """Reconnecting failed; paho calls this while it handles the exception."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._say(why_unreachable(self._address, error))
        self._read_files_again()

    def _on_subscribe(self, _client: Client, _data: object, _id: int, reasons: list[ReasonCode], _: object) -> None:
        refused = [name for name, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if refused:
            self._refuse(f"no subscription to {refused[0]!r} is allowed")
        else:
            self._link_up()

    def _on_disconnect(
        self, client: Client, _data: object, _flags: DisconnectFlags, reason: ReasonCode, _: object
    ) -> None:
        self._session += 1
        self._asked_s = None
        with self._sending:
            words = self._why_cut(reason)
            was_up, self._up = self._up, False
            self._lane.forget()
            client.drop_out_messages()
        if was_up:
            self._set_pause(client, 2 * self._pause_s if reason.value == _TAKEN_OVER else self._pauses_s[0])
            self.inject(LinkDown(words))
        elif self._settled.is_set() and (why := self._why_not_taken()):
            self._say(f"broker at {self._address} refuses {self._client_id!r}: {why}")
        if not self._settled.is_set():
            self._is_cut_off = True
            self._refuse(
                f"it closed the connection ({words}); check that the port is for {self._kind_of_port}, and that the "
                "broker has files left for connections (its `ulimit -n`)"
            )
        self._read_files_again()
        self._ended.set()

    def _why_not_taken(self) -> str:
        """Why the broker refuses the certificate, or "". Connects once more to find out, while there is no link."""
        try:
            return "" if self._tls is None else why_refused(self._address, self._tls)
        except OSError:
            return ""

    def _read_files_again(self) -> None:
        """An authority that was trusted stays so until the process ends: the broker may not be renewed yet."""
        if self._tls is not None:
            try:
                if self._ca_file is not None:
                    trust_authorities(self._tls, self._ca_file)
                if self._certificate is not None:
                    show_certificate(self._tls, *self._certificate)
            except ConfigurationError as error:
                self._say(str(error))

    def _why_cut(self, reason: ReasonCode) -> str:
        """Why the link was cut, in words.

        If it is cut twice while a message is in flight that is larger than any acknowledged so far, the broker probably
        does not accept that size, and the limit is lowered to the largest size that it has accepted.
        """
        words = "no reason given" if reason.value == _UNSPECIFIED else str(reason)
        is_brief = self._up and time.monotonic() - self._up_s < _BRIEF_S
        self._brief_links = self._brief_links + 1 if is_brief else 0
        if reason.value == _TAKEN_OVER or self._brief_links >= _MANY_BRIEF:
            return f"{words}; does another client call itself {self._client_id!r}? Only one may: end the other"
        largest, taken = self._lane.largest_bytes(), max(self._lane.taken_bytes, MIN_PAYLOAD_BYTES)
        self._cuts += largest > taken
        if largest <= taken or (reason.value != _PACKET_TOO_LARGE and self._cuts < 2):
            return words
        self._guessed_bytes = min(self._guessed_bytes, taken)
        return f"{words}; a message of {largest} bytes may exceed its limit on packets (mosquitto: max_packet_size)"

    def _on_message(self, client: Client, _data: object, message: MQTTMessage) -> None:
        _acknowledge_tcp_now(client)
        unacknowledged = _Unacknowledged(message.mid, self._session) if message.qos else None
        if unacknowledged is None and self._queue.qsize() >= _MAX_UNREAD:
            return  # the broker bounds those of QoS 1 alone, and this one may be lost
        try:
            self._queue.put((Incoming(message.topic, bytes(message.payload)), unacknowledged))
        except UnicodeDecodeError:  # such a topic is not this protocol's, and an exception would end paho's thread
            return

    def _on_publish(self, client: Client, _data: object, message_id: int, reason: ReasonCode, _: object) -> None:
        _acknowledge_tcp_now(client)
        if reason.is_failure:
            self._say(f"the broker at {self._address} refuses a message: {reason}")
        if self._lane.acknowledged(message_id):
            self.inject(BulkRoom())

    def _link_up(self) -> None:
        self._up, self._up_s, self._asked_s = True, time.monotonic(), None
        self._said = ""
        self.inject(LinkUp())
        self._settled.set()

    def _refuse(self, reason: str) -> None:
        """Note why the broker refuses: :meth:`connect` raises it if it is waiting, otherwise it is logged."""
        if not self._settled.is_set():
            self._refusal = reason
            self._settled.set()
        else:
            self._say(f"the broker at {self._address} refuses {self._client_id!r}: {reason}")
            self._set_pause(self._client, 2 * self._pause_s)  # what is wrong came after a connection
            _cut(self._client.socket())

    def _set_pause(self, client: Client, pause_s: float) -> None:
        """Before the next connection; paho doubles it each time that there is none."""
        self._pause_s = min(pause_s, self._pauses_s[1])
        client.reconnect_delay_set(self._pause_s, self._pauses_s[1])  # type: ignore[arg-type]  # it only adds them

    def _say(self, words: str) -> None:
        if words != self._said:
            _log.warning("%s", words)
        self._said = words


@dataclass(frozen=True, slots=True)
class _Unacknowledged:
    """The message to acknowledge, and its connection: on a later one, the same id means another message."""

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
    return client


def _drawn_pauses_s() -> tuple[float, float]:
    """First and longest, drawn by each client, so that a fleet does not come back at one instant."""
    return random.uniform(*_RECONNECT_FIRST_S), random.uniform(*_RECONNECT_LAST_S)  # noqa: S311 no secret


def _limit_words(max_bytes: int) -> str:
    return f"it takes messages of at most {max_bytes} bytes: raise its limit on packets (mosquitto: max_packet_size)"


def _advice(reason: ReasonCode) -> str:
    """What to do about a broker that lets nobody in for ``reason``."""
    if reason.value == _OTHER_VERSION:
        return "check the MQTT version"
    if reason.value == _NO_RETAIN:
        return _RETAIN_ADVICE
    return "check user name, password and client id" if reason.value in _NOT_LET_IN else "its log may say more"


def _on_socket_open(_client: Client, _data: object, opened: object) -> None:
    """Switch Nagle's algorithm off: with it, 40 bytes there and back took 44 ms instead of 0.6 ms.

    paho waits by select, and would take a socket that select refuses for a connection that is lost.
    """
    if isinstance(opened, socket.socket):
        if opened.fileno() > LAST_OF_SELECT:
            raise BeyondSelectError(errno.EINVAL, f"file {opened.fileno()} is beyond what select can wait for")
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _acknowledge_tcp_now(client: Client) -> None:
    """Make the kernel send the TCP acknowledgement that it delays (up to 40 ms) to combine it with data.

    Most brokers leave Nagle's algorithm on, so that their next small message waits for it. Linux resets the option
    after each use, so it is set for every message: 40 MB took 0.5 s with it, 2.0 s without.
    """
    opened = client.socket()
    if _TCP_QUICKACK is not None and isinstance(opened, socket.socket):
        opened.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)


def _cut(opened: object) -> None:
    """Shut the socket down, which wakes paho from waiting on a link that no longer answers."""
    if isinstance(opened, socket.socket):
        with suppress(OSError):  # not connected any more
            opened.shutdown(socket.SHUT_RDWR)


def _discard(opened: object) -> None:
    """Close a socket that a failed handshake left open."""
    if isinstance(opened, socket.socket):
        opened.close()
