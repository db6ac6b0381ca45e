"""Over a link of few bytes a second: blobs use it almost whole, and small messages pass them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge_sdk.protocol.messages import MAX_CHUNK_BYTES, Declined, Failure
from edge_sdk.transport import lane, transfer
from edge_sdk.transport.exchange import Fetched
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import mosquitto_broker
from tests.support.exchange_node import Node, wait
from tests.support.throttle import throttled

pytestmark = pytest.mark.mosquitto
Pair = Callable[[float], tuple[Node, Node]]
KEEPALIVE_S = 2


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A coordinator beside the broker, and a device behind a link of so many bytes a second each way."""
    with mosquitto_broker() as broker, ExitStack() as stack:

        def made(bytes_per_s: float) -> tuple[Node, Node]:
            address = stack.enter_context(throttled(broker.address, bytes_per_s))
            nodes = Node(broker.address, "", tmp_path / "coordinator"), Node(address, "device", tmp_path / "device")
            for node in nodes:
                node.start()
                stack.callback(node.stop)
            return nodes

        yield made


def use_of_link(pair: Pair, bytes_per_s: float, size_bytes: int, *ways: str) -> dict[str, float]:
    """All ``ways`` at once: what share of the link's bytes were the blob's."""
    coordinator, device = pair(bytes_per_s)
    receivers = {"down": device, "up": coordinator}
    senders = {"down": coordinator, "up": device}
    began_s, used = time.monotonic(), {}
    for way in ways:
        digest = senders[way].folder.put_bytes(os.urandom(size_bytes))
        receivers[way].fetch(senders[way].name, digest, size_bytes)
    while len(used) < len(ways):
        for way in ways:
            if receivers[way].outcomes:
                used.setdefault(way, size_bytes / (time.monotonic() - began_s) / bytes_per_s)
        time.sleep(0.005)
    assert {type(outcome) for way in ways for outcome in receivers[way].outcomes} == {Fetched}
    print(used)
    return used


def test_transfer_uses_nine_tenths_of_a_slow_link(pair: Pair) -> None:
    assert min(use_of_link(pair, 64_000, 250_000, "down", "up").values()) >= 0.9


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["down", "up"])
def test_transfer_uses_nine_tenths_of_64_kbit_a_second(pair: Pair, way: str) -> None:
    assert use_of_link(pair, 8_000, 1_000_000, way)[way] >= 0.9


def small_message_s(pair: Pair, bytes_per_s: float, *, times: int, patience_s: float) -> list[float]:
    """How long small messages take from a device that uploads a blob meanwhile; without those that took too long."""
    coordinator, device = pair(bytes_per_s)
    size_bytes = 40 * MAX_CHUNK_BYTES
    for _ in range(2):
        coordinator.fetch("device", device.folder.put_bytes(os.urandom(size_bytes)), size_bytes)
    wait(lambda: coordinator.exchange.received_bytes["device"] > MAX_CHUNK_BYTES // 2)
    took_s: list[float] = []
    for number in range(1, times + 1):
        began_s = time.monotonic()
        device.send("coordinator", Declined(task="task", round=number, failure=Failure.POLICY))
        while len(coordinator.heard) < number and time.monotonic() - began_s < patience_s:
            time.sleep(0.005)
        if len(coordinator.heard) < number:
            break
        took_s.append(coordinator.heard[-1][0] - began_s)
    print(took_s)
    return took_s


def test_small_message_passes_bulk_within_a_chunks_time(pair: Pair) -> None:
    """At 256 kbit/s a chunk of 128 KiB takes four seconds."""
    took_s = small_message_s(pair, 32_000, times=3, patience_s=10)
    assert len(took_s) == 3
    assert max(took_s) < MAX_CHUNK_BYTES / 32_000


@pytest.mark.long
def test_small_message_waits_long_where_bulk_is_not_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is the bound that lets it pass."""
    monkeypatch.setattr(transfer, "_FIRST_WINDOW_GRAINS", 64)
    monkeypatch.setattr(lane, "_FIRST_LIMIT_BYTES", 2 << 20)
    assert small_message_s(pair, 32_000, times=1, patience_s=MAX_CHUNK_BYTES / 32_000) == []


def cuts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ends of links that carry bulk both ways for a while, on which 128 KiB take twice the keep-alive."""
    monkeypatch.setitem(MqttTransport.__init__.__kwdefaults__, "keepalive_s", KEEPALIVE_S)
    bytes_per_s = MAX_CHUNK_BYTES / KEEPALIVE_S / 2
    nodes = pair(bytes_per_s)
    assert {node.transport._keepalive_s for node in nodes} == {KEEPALIVE_S}
    for receiver, sender in (nodes, reversed(nodes)):
        for _ in range(2):
            size_bytes = 40 * MAX_CHUNK_BYTES
            receiver.fetch(sender.name, sender.folder.put_bytes(os.urandom(size_bytes)), size_bytes)
    time.sleep(4 * KEEPALIVE_S)
    moved_bytes = sum(node.exchange.received_bytes.total() for node in nodes)
    assert moved_bytes > bytes_per_s * KEEPALIVE_S, "the link was hardly used: this shows nothing"
    return [cut for node in nodes for cut in node.cuts]


def test_keep_alive_is_not_starved_by_bulk(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuts(pair, monkeypatch) == []


@pytest.mark.long
def test_keep_alive_starves_where_bulk_is_not_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: of a chunk that takes longer than the keep-alive neither end hears anything."""
    monkeypatch.setattr(transfer, "_FIRST_WINDOW_GRAINS", 64)
    monkeypatch.setattr(lane, "_FIRST_LIMIT_BYTES", 2 << 20)
    assert cuts(pair, monkeypatch)


@pytest.mark.long
def test_small_message_passes_bulk_at_64_kbit_a_second(pair: Pair) -> None:
    assert max(small_message_s(pair, 8_000, times=5, patience_s=60)) < MAX_CHUNK_BYTES / 8_000
