"""MQTT and nothing else: what this project's transfers and round trips are compared with."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edge_sdk.transport.address import BrokerAddress


def bare_client(
    address: BrokerAddress, topic: str, on_message: Callable[[Client, MQTTMessage], object], *, qos: int = 0
) -> Client:
    """A client with TCP_NODELAY and paho's own window, subscribed to ``topic``."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_message = lambda own, _, message: on_message(own, message)
    client.on_socket_open = lambda *given: given[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    subscribed = queue.SimpleQueue[bool]()
    client.on_subscribe = lambda *_: subscribed.put(True)
    client.on_connect = lambda own, *_: own.subscribe(topic, qos)
    client.connect(address.host, address.port)
    client.loop_start()
    subscribed.get(timeout=10)
    return client
