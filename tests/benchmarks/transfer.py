"""A blob of 90 MB to a device and back through a broker, over the same bytes there and back by raw TCP on loopback.

Coordinator, broker and device are three processes; blobs lie in memory (/dev/shm, where there is one), so that no disk
is part of it. Raw TCP goes between two processes. What MQTT by itself takes is told beside it: the same bytes in
messages of the same size at the same QoS, between two bare clients. ``--broker iotcore`` measures the embedded broker.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import multiprocessing
import os
import queue
import socket
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from paho.mqtt.client import Client, MQTTMessage

from edge_sdk.protocol.messages import MAX_CHUNK_BYTES
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.exchange import Fetched
from tests.benchmarks._bare_mqtt import bare_client
from tests.benchmarks._measure import Figure, seconds, show
from tests.support.broker import iotcore_broker, mosquitto_broker
from tests.support.exchange_node import Node, wait

BROKERS = {"mosquitto": mosquitto_broker, "iotcore": iotcore_broker}
_SIZE_BYTES = 90_000_000
_MESSAGES = -(-_SIZE_BYTES // MAX_CHUNK_BYTES)
_REPEATS = 5
_PIECE_BYTES = 1 << 20
_BARE = "bare MQTT, one way"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 nothing is left there
_SPAWN = multiprocessing.get_context("spawn")


def run(options: list[str] | None = None) -> Figure:
    parser = argparse.ArgumentParser(prog="transfer")
    parser.add_argument("--broker", choices=BROKERS, default="mosquitto")
    name = parser.parse_args(options or []).broker
    samples: dict[str, list[float]] = {"raw TCP, there and back": [], "to the device": [], "back": [], _BARE: []}
    where = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=where) as folder,
        BROKERS[name]() as broker,
        _echo() as echo,
        _bare(broker.address) as bare,
        _pair(broker.address, Path(folder)) as (coordinator, device),
    ):
        for _ in range(_REPEATS):
            digest = coordinator.folder.put_bytes(os.urandom(_SIZE_BYTES))
            steps = (partial(_raw, echo), partial(_down, device, digest), partial(_up, coordinator, digest), bare)
            for times, step in zip(samples.values(), steps, strict=True):
                times.append(seconds(step))
            coordinator.folder.delete(digest)
    raw_s, down_s, up_s, bare_s = (statistics.median(times) for times in samples.values())
    data = os.urandom(_SIZE_BYTES)
    rows = [(what, f"{statistics.median(times):.3f} s") for what, times in samples.items()]
    rows += [("one SHA-256 of it", f"{seconds(lambda: hashlib.sha256(data)):.3f} s")]
    show(f"{_SIZE_BYTES / 1e6:.0f} MB through {name}, medians of {_REPEATS}", rows)
    more = {"bare_mqtt": round(2 * bare_s / raw_s, 2), "over_bare_mqtt": round((down_s + up_s) / 2 / bare_s, 2)}
    return Figure("transfer", (down_s + up_s) / raw_s, 3.0, f"times of raw TCP ({name})", more)


def _down(device: Connection, digest: str) -> None:
    device.send(digest)
    assert device.recv() == "fetched"


def _up(coordinator: Node, digest: str) -> None:
    coordinator.folder.delete(digest)
    coordinator.fetch("device", digest, _SIZE_BYTES)
    wait(lambda: bool(coordinator.outcomes))
    assert isinstance(coordinator.outcomes.pop(), Fetched)


@contextmanager
def _pair(address: BrokerAddress, folder: Path) -> Iterator[tuple[Node, Connection]]:
    """A coordinator here, and a device in a process of its own that fetches what it is told."""
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_device, args=(address, folder / "device", there), daemon=True)
    process.start()
    coordinator = Node(address, "", folder / "coordinator")
    coordinator.start()
    assert here.recv() == "ready"
    yield coordinator, here
    here.send("")
    process.join()
    coordinator.stop()


def _device(address: BrokerAddress, folder: Path, told: Connection) -> None:
    node = Node(address, "device", folder)
    node.start()
    told.send("ready")
    while digest := told.recv():
        for old in node.folder.digests():
            node.folder.delete(old)
        node.fetch("coordinator", digest, _SIZE_BYTES)
        wait(lambda: bool(node.outcomes))
        assert isinstance(node.outcomes.pop(), Fetched)
        told.send("fetched")
    node.stop()


@contextmanager
def _bare(address: BrokerAddress) -> Iterator[Callable[[], None]]:
    """The bytes to another process, which says when it has them all: once for each call."""
    ready, taken = _SPAWN.Event(), queue.SimpleQueue[bytes]()
    process = _SPAWN.Process(target=_count, args=(address, ready), daemon=True)
    process.start()
    ready.wait()
    client = bare_client(address, "bare/taken", lambda _, message: taken.put(message.payload))
    data = os.urandom(MAX_CHUNK_BYTES)

    def send() -> None:
        for _ in range(_MESSAGES):
            client.publish("bare/data", data, qos=1)
        taken.get(timeout=60)

    yield send
    client.disconnect()
    client.loop_stop()
    process.terminate()
    process.join()


def _count(address: BrokerAddress, ready: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    counted = itertools.count(1)

    def on_message(client: Client, _: MQTTMessage) -> None:
        if next(counted) % _MESSAGES == 0:
            client.publish("bare/taken", b"")

    bare_client(address, "bare/data", on_message, qos=1)
    ready.set()
    threading.Event().wait()


@contextmanager
def _echo() -> Iterator[socket.socket]:
    """A connection to a process that takes all bytes and then sends as many back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = _SPAWN.Process(target=_answer, args=(listener.getsockname(),), daemon=True)
        process.start()
        connection, _ = listener.accept()
    with connection:
        yield connection
    process.join()


def _answer(address: tuple[str, int]) -> None:
    data, buffer = bytes(_SIZE_BYTES), bytearray(_PIECE_BYTES)
    with socket.create_connection(address) as connection:
        while _take(connection, buffer):
            connection.sendall(data)


def _raw(connection: socket.socket) -> None:
    connection.sendall(bytes(_SIZE_BYTES))
    assert _take(connection, bytearray(_PIECE_BYTES))


def _take(connection: socket.socket, buffer: bytearray) -> bool:
    """All of it; ``False`` where the other side is done."""
    left = _SIZE_BYTES
    while left and (size := connection.recv_into(buffer, min(left, len(buffer)))):
        left -= size
    return left == 0
