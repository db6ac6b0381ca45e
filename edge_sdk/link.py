"""The agent's link to its broker, as its owner configured it, and what goes up it on which topic."""

from __future__ import annotations

from collections.abc import Callable

from edge_sdk.config import AgentConfig
from edge_sdk.protocol.messages import Chunk, DeviceMessage, Hello, Offline, encode
from edge_sdk.protocol.topics import Channel, Topic, device_filters
from edge_sdk.transport.base import Transport, Will
from edge_sdk.transport.mqtt import BrokerAddress, Credentials, MqttTransport


def mqtt_transport(config: AgentConfig, session: int) -> MqttTransport:
    """The link to the broker that ``config`` names, with this session's last will."""
    state = str(Topic(config.fleet, config.device, Channel.STATE))
    return MqttTransport(
        BrokerAddress.parse(config.broker),
        config.device,
        device_filters(config.fleet, config.device),
        will=Will(state, encode(Offline(device=config.device, session=session))),
        credentials=None if config.user is None else Credentials(config.user, config.password or ""),
        ca_file=config.ca_file,
        allow_plaintext=config.allow_plaintext,
    )


class Uplink:
    """What a device says, over ``transport``; ``on_sent`` hears the bytes of each message."""

    def __init__(self, config: AgentConfig, transport: Transport, on_sent: Callable[[int], None]) -> None:
        self._config, self._transport, self._on_sent = config, transport, on_sent

    def publish(self, message: DeviceMessage) -> None:
        """Say ``message``; who a device is, and that it is gone, is retained."""
        is_state = isinstance(message, Hello | Offline)
        channel = Channel.STATE if is_state else Channel.CHUNK_UP if isinstance(message, Chunk) else Channel.UP
        self._send(channel, encode(message), retain=is_state)

    def resend(self, payload: bytes) -> None:
        """Say a message of the outbox (again)."""
        self._send(Channel.UP, payload)

    def _send(self, channel: Channel, payload: bytes, *, retain: bool = False) -> None:
        topic = str(Topic(self._config.fleet, self._config.device, channel))
        self._transport.publish(topic, payload, retain=retain)
        self._on_sent(len(payload))
