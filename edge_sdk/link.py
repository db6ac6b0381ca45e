"""The agent's link to its broker, as its owner configured it."""

from __future__ import annotations

from edge_sdk.config import AgentConfig
from edge_sdk.protocol.messages import Offline, encode
from edge_sdk.protocol.topics import Channel, Topic, device_filters
from edge_sdk.transport.base import Will
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
