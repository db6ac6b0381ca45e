"""The agent's link to its broker, as its owner configured it, and the topic of each message that it publishes."""

from __future__ import annotations

import time
from collections.abc import Callable

from edge_sdk.config import AgentConfig
from edge_sdk.protocol.messages import Chunk, CoordinatorMessage, DeviceMessage, Hello, Offline, encode
from edge_sdk.protocol.topics import Channel, Topic, device_filters
from edge_sdk.security.identity import Identity
from edge_sdk.security.renewal import Renewal
from edge_sdk.transport.base import Transport, Will
from edge_sdk.transport.mqtt import MqttTransport


def mqtt_transport(config: AgentConfig, session: int) -> MqttTransport:
    """The link to the broker that ``config`` names, with this session's last will."""
    state = str(Topic(config.fleet, config.device, Channel.STATE))
    will = Will(state, encode(Offline(device=config.device, session=session)))
    return MqttTransport.of(config, config.device, device_filters(config.fleet, config.device), will=will)


class Uplink:
    """Publishes a device's messages over ``transport``; ``on_sent`` takes the size of each in bytes.

    The certificate from enrolling is renewed in time; one that lies elsewhere is its owner's responsibility.
    """

    def __init__(self, config: AgentConfig, transport: Transport, on_sent: Callable[[int], None]) -> None:
        self._config, self._transport, self._on_sent = config, transport, on_sent
        identity = Identity.of(config.state_dir)
        is_own = config.certificate_file == identity.file
        self._renewal = Renewal(identity, config.device, self.publish) if is_own else None

    def tick(self) -> None:
        """Ask for a new certificate, if that is due. Call while the link is up."""
        if self._renewal is not None:
            self._renewal.tick(time.time(), time.monotonic())

    def takes(self, message: CoordinatorMessage) -> bool:
        """Handle ``message`` if it concerns the link itself; whether it did."""
        return self._renewal is not None and self._renewal.takes(message)

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
