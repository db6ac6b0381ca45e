"""The agent's link to its broker, as its owner configured it, and the topics of the messages that pass over it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from threading import Event

from edge_sdk.config import AgentConfig
from edge_sdk.errors import BrokerUnreachableError, MalformedMessageError
from edge_sdk.protocol.messages import (
    Chunk,
    CoordinatorMessage,
    DeviceMessage,
    Hello,
    Offline,
    Ready,
    ReleaseReport,
    decode_from_coordinator,
    encode,
)
from edge_sdk.protocol.topics import Channel, Topic, device_filters
from edge_sdk.security.identity import Identity
from edge_sdk.security.renewal import Renewal
from edge_sdk.transport.base import Incoming, Transport, Will
from edge_sdk.transport.mqtt import MqttTransport

_log = logging.getLogger(__name__)
_MANY_UNANSWERED = 6
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 60.0


def mqtt_transport(config: AgentConfig, session: int) -> MqttTransport:
    """The link to the broker that ``config`` names, with this session's last will."""
    state = str(Topic(config.fleet, config.device, Channel.STATE))
    will = Will(state, encode(Offline(device=config.device, session=session)))
    return MqttTransport.of(config, config.device, device_filters(config.fleet, config.device), will=will)


class Uplink:
    """Publishes and reads a device's messages over ``transport``; ``on_sent`` takes the size of each sent, in bytes.

    The certificate from enrolling is renewed in time; one that lies elsewhere is its owner's responsibility.
    """

    def __init__(self, config: AgentConfig, transport: Transport, on_sent: Callable[[int], None]) -> None:
        self._config, self._transport, self._on_sent = config, transport, on_sent
        self._topics, self._unanswered = frozenset(device_filters(config.fleet, config.device)), 0
        identity = Identity.of(config.state_dir)
        shown = config.certificate_file
        is_own = shown is not None and shown.absolute() == identity.file.absolute()
        self._renewal = Renewal(identity, config.device, self.publish) if is_own else None

    def connect(self, stopping: Event, on_failure: Callable[[BrokerUnreachableError], None]) -> None:
        """Connect, and try again after a pause until that succeeds or ``stopping`` is set.

        ``on_failure`` takes the error of each attempt. The pauses double; they are drawn, so that a fleet that comes
        back from a power cut does not come all at once.
        """
        pause_s = _FIRST_PAUSE_S
        while not stopping.is_set():
            try:
                self._transport.connect()
            except BrokerUnreachableError as error:
                on_failure(error)
            else:
                return
            stopping.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 no secret
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def tick(self) -> None:
        """Ask for a new certificate, if that is due. Call while the link is up."""
        if self._renewal is not None:
            self._renewal.tick(time.time(), time.monotonic())

    def read(self, incoming: Incoming) -> CoordinatorMessage | None:
        """What the coordinator says. Whatever is malformed, or on another topic than this device's, is dropped."""
        if not incoming.payload:  # something retained is removed
            return None
        why: object = "this device did not subscribe to it"
        if incoming.topic in self._topics:
            try:
                return decode_from_coordinator(incoming.payload)
            except MalformedMessageError as error:
                why = error
        _log.warning("dropped a message on %s: %s", incoming.topic[:200], why)
        return None

    def ask(self, ready: Ready, *, is_heard: bool) -> None:
        """Say that this device may work. Where nobody has heard it on this connection so far, the log says so once."""
        self.publish(ready)
        self._unanswered = 0 if is_heard else self._unanswered + 1
        if self._unanswered == _MANY_UNANSWERED:
            _log.warning(
                "no coordinator of fleet %s answers %s: check that it runs, the fleet's name, and that the broker lets "
                "this device read %s",
                self._config.fleet,
                self._config.device,
                Topic(self._config.fleet, self._config.device, Channel.DOWN),
            )

    def takes(self, message: CoordinatorMessage) -> bool:
        """Handle ``message`` if it concerns the link itself; whether it did."""
        return self._renewal is not None and self._renewal.takes(message)

    def greet(self, hello: Hello, lost: Iterable[ReleaseReport]) -> None:
        """Say who this is, and which releases it should run but cannot."""
        self.publish(hello)
        for report in lost:
            self.publish(report)

    def publish(self, message: DeviceMessage) -> None:
        """Publish ``message``; hello and offline are retained."""
        is_state, is_bulk = isinstance(message, Hello | Offline), isinstance(message, Chunk)
        channel = Channel.STATE if is_state else Channel.CHUNK_UP if is_bulk else Channel.UP
        self._send(channel, encode(message), retain=is_state, bulk=is_bulk)

    def resend(self, payload: bytes) -> None:
        """Publish an encoded message of the outbox (again)."""
        self._send(Channel.UP, payload)

    def _send(self, channel: Channel, payload: bytes, *, retain: bool = False, bulk: bool = False) -> None:
        topic = str(Topic(self._config.fleet, self._config.device, channel))
        self._transport.publish(topic, payload, retain=retain, bulk=bulk)
        self._on_sent(len(payload))
