"""Ready, offer, declined: what the coordinator answers an open round's device, over a bare MQTT echo of 40 bytes.

The coordinator is a process with a played model side and its store on the disk; the device says ``Ready``, waits for
its ``Offer``, gives it up by ``Declined`` and asks again. The echo is another process, two bare paho clients with
TCP_NODELAY, through the same broker, at QoS 0: at QoS 1 the broker's own Nagle delay makes 44 ms of it.
``--broker iotcore`` measures the embedded broker.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edge_sdk.protocol.messages import (
    Declined,
    DeviceMessage,
    Failure,
    Hello,
    Offer,
    Ready,
    decode_from_coordinator,
    encode,
)
from edge_sdk.protocol.topics import Channel, Topic, device_filters
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.base import Incoming
from edge_sdk.transport.mqtt import MqttTransport
from tests.benchmarks._bare_mqtt import bare_client
from tests.benchmarks._measure import Figure, seconds, show
from tests.benchmarks.transfer import BROKERS
from tests.support.light_model import light_task
from tests.support.served import ServedApart, quick
from tests.support.simulator import able_device

_NAME = "device"
_ROUND_TRIPS = 300
_TURNS = 7  # where the system puts the processes changes the ratio by a fifth from one turn to the next
_WARM_UP = 20
_PAYLOAD = bytes(40)
_SPAWN = multiprocessing.get_context("spawn")


def run(options: list[str] | None = None) -> Figure:
    parser = argparse.ArgumentParser(prog="round_trip")
    parser.add_argument("--broker", choices=BROKERS, default="mosquitto")
    name = parser.parse_args(options or []).broker
    turns = [_turn(name) for _ in range(_TURNS)]
    ratios = [ask_s / echo_s for echo_s, ask_s in turns]
    echo_ms, ask_ms = (1e3 * statistics.median(medians_s) for medians_s in zip(*turns, strict=True))
    show(
        f"{name}, medians of {_TURNS} turns of {_ROUND_TRIPS}",
        [
            ("echo of 40 bytes", f"{echo_ms:.2f} ms"),
            ("ready, offer, declined", f"{ask_ms:.2f} ms"),
            ("ratio", f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"),
        ],
    )
    return Figure("round_trip", statistics.median(ratios), 3.0, f"bare MQTT echoes ({name})")


def _turn(name: str) -> tuple[float, float]:
    """Median seconds of an echo and of an ask, which take turns, between fresh processes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        BROKERS[name]() as broker,
        _echo(broker.address) as echo,
        _coordinator(broker.address, Path(folder)),
        _device(broker.address) as ask,
    ):
        samples = [(seconds(echo), seconds(ask)) for _ in range(_WARM_UP + _ROUND_TRIPS)][_WARM_UP:]
    echo_s, ask_s = (statistics.median(times) for times in zip(*samples, strict=True))
    return echo_s, ask_s


@contextmanager
def _coordinator(address: BrokerAddress, folder: Path) -> Iterator[None]:
    """With a task whose first round stays open for its one device."""
    config = quick(folder / "state", str(address), gather_s=0.1)
    task = light_task(folder, min_devices=1, quorum=1, rounds=1, round_deadline_s=3600.0)
    with ServedApart(config, task):
        yield


@contextmanager
def _device(address: BrokerAddress) -> Iterator[Callable[[], None]]:
    """Ready, offer, declined: once for each call."""
    ready = Ready(snapshot=able_device())
    with closing(MqttTransport(address, _NAME, device_filters("default", _NAME))) as transport:
        transport.connect()

        def say(message: DeviceMessage) -> None:
            is_state = isinstance(message, Hello)
            topic = str(Topic("default", _NAME, Channel.STATE if is_state else Channel.UP))
            transport.publish(topic, encode(message), retain=is_state)

        def ask() -> None:
            say(ready)
            offer = _offer(transport, lambda: say(ready))
            say(Declined(task=offer.task, round=offer.round, failure=Failure.POLICY))

        say(Hello(device=_NAME, session=1, profile="measured", agent_version="0", snapshot=ready.snapshot))
        yield ask


def _offer(transport: MqttTransport, ask_again: Callable[[], None]) -> Offer:
    """The next; a coordinator that has no round yet is asked again."""
    while True:
        delivery = transport.receive(1)
        if delivery is None:
            ask_again()
        elif isinstance(delivery, Incoming):
            message = decode_from_coordinator(delivery.payload)
            if isinstance(message, Offer):
                return message


@contextmanager
def _echo(address: BrokerAddress) -> Iterator[Callable[[], None]]:
    """40 bytes to another process and back: once for each call."""
    ready, answers = _SPAWN.Event(), queue.SimpleQueue[bytes]()
    process = _SPAWN.Process(target=_answer, args=(address, ready), daemon=True)
    process.start()
    ready.wait()
    client = bare_client(address, "echo/back", lambda _, message: answers.put(message.payload))

    def echo() -> None:
        client.publish("echo/there", _PAYLOAD)
        answers.get(timeout=10)

    yield echo
    client.disconnect()
    client.loop_stop()
    process.terminate()
    process.join()


def _answer(address: BrokerAddress, ready: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    bare_client(address, "echo/there", lambda client, message: client.publish("echo/back", message.payload))
    ready.set()
    time.sleep(3600)
