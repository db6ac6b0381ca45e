"""The agent's link to its broker, as its owner configured it, and what goes up it on which topic."""

from __future__ import annotations

from collections.abc import Callable

from edge_sdk.config import AgentConfig
from edge_sdk.protocol.messages import Chunk, DeviceMessage, Hello, Offline, encode
from edge_sdk.protocol.topics import Channel, Topic, device_filters
from edge_sdk.transport.base import Transport, Will
from edge_sdk.transport.mqtt import MqttTransport


def mqtt_transport(config: AgentConfig, session: int) -> MqttTransport:
    """The link to the broker that ``config`` names, with this session's last will."""
    state = str(Topic(config.fleet, config.device, Channel.STATE))
    will = Will(state, encode(Offline(device=config.device, session=session)))
    return MqttTransport.of(config, config.device, device_filters(config.fleet, config.device), will=will)


class Uplink:
    """What a device says, over ``transport``; ``on_sent`` hears the bytes of each message."""

    def __init__(self, config: AgentConfig, transport: Transport, on_sent: Callable[[int], None]) -> None:
        self._config, self._transport, self._on_sent = config, transport, on_sent

    def publish(self, message: DeviceMessage) -> None:
        """Say ``message``; who a device is, and that it is gone, is retained."""
        is_state, is_bulk = isinstance(message, Hello | Offline), isinstance(message, Chunk)
        channel = Channel.STATE if is_state else Channel.CHUNK_UP if is_bulk else Channel.UP
        self._send(channel, encode(message), retain=is_state, bulk=is_bulk)

    def resend(self, payload: bytes) -> None:
        """Say a message of the outbox (again)."""
        self._send(Channel.UP, payload)

    def _send(self, channel: Channel, payload: bytes, *, retain: bool = False, bulk: bool = False) -> None:
        topic = str(Topic(self._config.fleet, self._config.device, channel))
        self._transport.publish(topic, payload, retain=retain, bulk=bulk)
        self._on_sent(len(payload))
