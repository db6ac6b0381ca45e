"""What a broker does not take, and what a link survives: packets, files, versions, keep-alive, and coming back."""

from __future__ import annotations

import logging
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from edge_sdk.errors import BrokerUnreachableError
from edge_sdk.protocol.messages import GRAIN_BYTES, MAX_CHUNK_BYTES
from edge_sdk.transport import mqtt, transfer
from edge_sdk.transport.address import BrokerAddress, MqttVersion
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp
from edge_sdk.transport.exchange import Fetched
from edge_sdk.transport.lane import Lane
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import Broker, mosquitto_broker, nats_broker
from tests.support.exchange_node import Node, wait
from tests.support.throttle import carry

pytestmark = pytest.mark.mosquitto


def fetched(broker: Broker, folder: Path, version: MqttVersion) -> list[str]:
    """What a device logs while it fetches a blob of eight chunks through ``broker``."""
    size_bytes = 8 * MAX_CHUNK_BYTES
    coordinator, device = (
        Node(broker.address, name, folder / (name or "c"), version=version) for name in ("", "device")
    )
    with ExitStack() as stack:
        for node in (coordinator, device):
            node.start()
            stack.callback(node.stop)
        device.fetch("coordinator", coordinator.folder.put_bytes(os.urandom(size_bytes)), size_bytes)
        wait(lambda: bool(device.outcomes))
        assert [type(outcome) for outcome in device.outcomes] == [Fetched]
        return coordinator.cuts


def test_chunks_are_as_large_as_the_broker_says_that_packets_may_be(tmp_path: Path) -> None:
    with mosquitto_broker(lines=["max_packet_size 40000"]) as broker:
        assert fetched(broker, tmp_path, MqttVersion.V5) == []


@pytest.mark.parametrize("publishing_takes_s", [0, 0.03])
def test_broker_that_cuts_off_large_packets_without_a_word_gets_smaller_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publishing_takes_s: float
) -> None:
    """MQTT 3.1.1 has no way to say it. The link may be gone before the call that sent the packet returns."""
    noted = Lane.sent

    def sent(lane: Lane, message_id: int, size_bytes: int, *, bulk: bool) -> None:
        time.sleep(publishing_takes_s * bulk)
        noted(lane, message_id, size_bytes, bulk=bulk)

    monkeypatch.setattr(Lane, "sent", sent)
    monkeypatch.setattr(mqtt, "_RECONNECT_FIRST_S", (0.05, 0.1))
    monkeypatch.setattr(transfer, "_PATIENCE_S", 0.5)
    with mosquitto_broker(lines=["max_packet_size 70000"]) as broker:
        cuts = fetched(broker, tmp_path, MqttVersion.V311)
    assert len(cuts) == 2
    assert "max_packet_size" in cuts[-1]


def test_broker_that_takes_too_little_is_refused_in_plain_words() -> None:
    with (
        mosquitto_broker(lines=["max_packet_size 9000"]) as broker,
        closing(MqttTransport(broker.address, "device", ("a/b",))) as device,
        pytest.raises(BrokerUnreachableError, match=r"at most 8744 bytes.*max_packet_size") as caught,
    ):
        device.connect()
    assert str(GRAIN_BYTES + 1024) in str(caught.value)


def test_message_that_the_broker_would_not_take_is_named_and_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    with (
        mosquitto_broker(lines=["max_packet_size 40000"]) as broker,
        closing(MqttTransport(broker.address, "device", ("a/b",))) as device,
    ):
        device.connect()
        assert device.receive(5) == LinkUp()
        device.publish("a/b", bytes(50_000))
        device.publish("a/b", b"small")
        assert device.receive(5) == Incoming("a/b", b"small")
    assert "message of 50000 bytes is not sent" in caplog.text


def test_broker_without_files_for_connections_is_named() -> None:
    with mosquitto_broker(files=16) as broker, ExitStack() as stack:
        names = [f"device-{number}" for number in range(20)]
        clients = [stack.enter_context(closing(MqttTransport(broker.address, name, ()))) for name in names]
        with pytest.raises(BrokerUnreachableError, match="ulimit -n"):
            [client.connect() for client in clients]


def test_client_without_files_for_a_connection_is_named() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    with mosquitto_broker() as broker, closing(MqttTransport(broker.address, "device", ())) as device:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            with pytest.raises(BrokerUnreachableError, match="ulimit -n"):
                device.connect()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)


def test_broker_that_speaks_only_3_1_1_is_spoken_to_so(caplog: pytest.LogCaptureFixture) -> None:
    with nats_broker() as broker, closing(MqttTransport(broker.address, "device", ("a/b",))) as device:
        device.connect()
        assert device.receive(5) == LinkUp()
        device.publish("a/b", b"hello")
        assert device.receive(5) == Incoming("a/b", b"hello")
    assert "does not speak MQTT 5; using 3.1.1" in caplog.text


def test_broker_that_speaks_only_3_1_1_is_refused_where_5_is_wanted() -> None:
    with nats_broker() as broker:
        device = MqttTransport(broker.address, "device", (), version=MqttVersion.V5)
        with pytest.raises(BrokerUnreachableError, match="Unsupported protocol version: check the MQTT version"):
            device.connect()


@contextmanager
def hanging_up_on_5(broker: BrokerAddress) -> Iterator[BrokerAddress]:
    """A way to ``broker`` where a client that speaks MQTT 5 is cut off without a word, as RabbitMQ 3.10 does it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def let_in() -> None:
            with suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    said = near.recv(64, socket.MSG_PEEK)
                    if said[said.index(b"MQTT") + 4] == 5:
                        near.close()
                        continue
                    far = socket.create_connection((broker.host, broker.port))
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=carry, args=(*pair, 1e9), daemon=True).start()

        threading.Thread(target=let_in, daemon=True).start()
        yield BrokerAddress(*listener.getsockname())


def test_broker_that_hangs_up_on_5_is_spoken_to_in_3_1_1(caplog: pytest.LogCaptureFixture) -> None:
    with (
        mosquitto_broker() as broker,
        hanging_up_on_5(broker.address) as address,
        closing(MqttTransport(address, "device", ("a/b",))) as device,
    ):
        device.connect()
        assert (device.receive(5), device.spoken) == (LinkUp(), MqttVersion.V311)
        device.publish("a/b", b"hello")
        assert device.receive(5) == Incoming("a/b", b"hello")
    assert "does not speak MQTT 5; using 3.1.1" in caplog.text


# -- keep-alive, and coming back


def cut_off(listener: socket.socket, times: int) -> None:
    """Take so many connections and close them."""
    for _ in range(times):
        listener.accept()[0].close()


def test_link_that_is_cut_while_it_comes_up_is_tried_again() -> None:
    with mosquitto_broker() as broker, socket.create_server(("127.0.0.1", 0)) as bad:
        device = MqttTransport(BrokerAddress(*bad.getsockname()), "device", ("a/b",))
        opened = list[str]()
        open_anew = device._open_anew

        def to_the_broker_at_last(**options: bool) -> None:
            opened.append("anew")
            if len(opened) == 3:
                device._address = broker.address
            open_anew(**options)

        device._open_anew = to_the_broker_at_last  # type: ignore[method-assign]
        cutting = threading.Thread(target=cut_off, args=(bad, 2))
        cutting.start()
        with closing(device):
            device.connect()
            assert device.receive(5) == LinkUp()
        cutting.join()


def test_link_that_is_always_cut_is_given_up_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bad:
        cutting = threading.Thread(target=cut_off, args=(bad, 3))
        cutting.start()
        began_s = time.monotonic()
        with (
            closing(MqttTransport(BrokerAddress(*bad.getsockname()), "device", ("a/b",))) as device,
            pytest.raises(BrokerUnreachableError, match="check that the port is for MQTT"),
        ):
            device.connect()
        assert device.spoken is MqttVersion.V5, "the next time it begins with that again"
        assert 0.6 < time.monotonic() - began_s < 20
        cutting.join()


def test_loop_that_is_busy_for_longer_than_the_keep_alive_stays_connected() -> None:
    with mosquitto_broker() as broker, ExitStack() as stack:
        busy = stack.enter_context(closing(MqttTransport(broker.address, "busy", ("a/busy",), keepalive_s=1)))
        other = stack.enter_context(closing(MqttTransport(broker.address, "other", ())))
        busy.connect()
        other.connect()
        for _ in range(100):
            other.publish("a/busy", bytes(MAX_CHUNK_BYTES))
        until_s = time.monotonic() + 4  # the broker waits for one and a half of the keep-alive
        while time.monotonic() < until_s:
            sum(range(1000))
        got = [busy.receive(5) for _ in range(101)]
    assert not [delivery for delivery in got if isinstance(delivery, LinkDown)]
    assert sum(isinstance(delivery, Incoming) for delivery in got) == 100


@pytest.fixture
def lost() -> Iterator[tuple[MqttTransport, BrokerAddress]]:
    """A client whose broker has gone, and where it was."""
    with mosquitto_broker() as broker, closing(MqttTransport(broker.address, "device", ())) as device:
        device.connect()
        broker.kill()
        yield device, broker.address


def test_pauses_between_connections_grow(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt, "_RECONNECT_FIRST_S", (0.2, 0.2))
    caplog.set_level(logging.WARNING)
    _, address = request.getfixturevalue("lost")
    with socket.create_server((address.host, address.port)) as listener:
        tried_s: list[float] = []
        for _ in range(4):
            listener.accept()[0].close()
            tried_s.append(time.monotonic())
    gaps_s = [later - earlier for earlier, later in pairwise(tried_s)]
    assert all(gap_s > 0.35 * 2**number for number, gap_s in enumerate(gaps_s))


def test_each_client_waits_for_another_time() -> None:
    random.seed(1)
    first_s = set()
    for number in range(50):
        client = MqttTransport(BrokerAddress("127.0.0.1", 1), f"device-{number}", ())._client
        first_s.add(client._reconnect_min_delay)
        assert 0.5 <= client._reconnect_min_delay <= 2
        assert 20 <= client._reconnect_max_delay <= 60
    assert len(first_s) == 50
