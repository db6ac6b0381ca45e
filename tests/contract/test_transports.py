"""What every transport promises: in memory, on the embedded broker, on mosquitto and NATS, with MQTT 5 and 3.1.1."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Protocol

import pytest

from edge_sdk.errors import BrokerUnreachableError, ConfigurationError
from edge_sdk.transport import mqtt
from edge_sdk.transport.address import BrokerAddress, Credentials, MqttVersion
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp, Transport, Will
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import Broker, iotcore_broker, mosquitto_broker, nats_broker


class Wire(Protocol):
    """One kind of transport and the broker behind it."""

    def transport(self, name: str, *filters: str, will: Will | None = None) -> Transport: ...

    def vanish(self, transport: Transport) -> None: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...


Connect = Callable[..., Transport]


class MemoryWire:
    def __init__(self) -> None:
        self.hub = MemoryHub()
        self.kill, self.restart = self.hub.stop, self.hub.start

    def transport(self, name: str, *filters: str, will: Will | None = None) -> Transport:
        del name
        return MemoryTransport(self.hub, filters, will=will)

    def vanish(self, transport: MemoryTransport) -> None:
        self.hub.drop(transport)


class MqttWire:
    def __init__(self, broker: Broker, version: MqttVersion) -> None:
        self.broker, self.version = broker, version
        self.kill, self.restart = broker.kill, broker.restart

    def transport(self, name: str, *filters: str, will: Will | None = None) -> Transport:
        return MqttTransport(self.broker.address, name, filters, will=will, version=self.version)

    def vanish(self, transport: MqttTransport) -> None:
        transport._client.socket().shutdown(socket.SHUT_RDWR)


@pytest.fixture(
    params=[
        "memory",
        pytest.param("iotcore", marks=pytest.mark.beyond_base),
        pytest.param("mosquitto", marks=pytest.mark.mosquitto),
        pytest.param("mosquitto, 3.1.1", marks=pytest.mark.mosquitto),
        "nats, 3.1.1",
    ]
)
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    if request.param == "memory":
        yield MemoryWire()
        return
    name, _, version = request.param.partition(", ")
    with {"iotcore": iotcore_broker, "mosquitto": mosquitto_broker, "nats": nats_broker}[name]() as broker:
        yield MqttWire(broker, MqttVersion(version or "5"))


@pytest.fixture
def connect(wire: Wire) -> Iterator[Connect]:
    """Connect a transport and take its first LinkUp; all are closed at the end."""
    with ExitStack() as stack:

        def connected(name: str, *filters: str, will: Will | None = None) -> Transport:
            transport = stack.enter_context(closing(wire.transport(name, *filters, will=will)))
            transport.connect()
            assert transport.receive(5) == LinkUp()
            return transport

        yield connected


def until(transport: Transport, kind: type, timeout_s: float = 15.0) -> object:
    """The next delivery of this kind; others are skipped."""
    give_up_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_s:
        delivery = transport.receive(0.2)
        if isinstance(delivery, kind):
            return delivery
    pytest.fail(f"no {kind.__name__} within {timeout_s} s")


def test_publish_reaches_subscriber(connect: Connect) -> None:
    here, there = connect("here", "a/here"), connect("there")
    there.publish("a/here", b"hello")
    assert until(here, Incoming) == Incoming("a/here", b"hello")


def test_receive_without_message_returns_none_in_time(connect: Connect) -> None:
    here, start_s = connect("here", "a/here"), time.monotonic()
    assert here.receive(0.2) is None
    assert 0.15 < time.monotonic() - start_s < 1


def test_inject_from_thread_wakes_receive(connect: Connect) -> None:
    here = connect("here")
    threading.Timer(0.1, here.inject, args=["done"]).start()
    assert here.receive(5) == "done"


def test_retained_message_reaches_late_subscriber(connect: Connect) -> None:
    there = connect("there")
    there.publish("a/b/state", b"old", retain=True)
    there.publish("a/b/state", b"born", retain=True)
    probe = connect("probe", "a/b/state")
    while until(probe, Incoming).payload != b"born":  # who subscribes between the two sees both
        pass
    assert until(connect("late", "a/+/state"), Incoming) == Incoming("a/b/state", b"born")


def test_unretained_message_does_not_reach_late_subscriber(connect: Connect) -> None:
    early, there = connect("early", "a/b/up"), connect("there")
    there.publish("a/b/up", b"x")
    until(early, Incoming)
    assert connect("late", "a/b/up").receive(0.3) is None


def test_will_is_published_and_retained_when_link_is_cut(wire: Wire, connect: Connect) -> None:
    watcher = connect("watcher", "a/+/state")
    device = connect("device", will=Will("a/device/state", b"offline"))
    wire.vanish(device)
    assert until(watcher, Incoming) == Incoming("a/device/state", b"offline")
    assert until(connect("late", "a/+/state"), Incoming).payload == b"offline"


def test_will_is_not_published_on_close(connect: Connect) -> None:
    watcher = connect("watcher", "a/+/state")
    device = connect("device", will=Will("a/device/state", b"offline"))
    device.publish("a/device/state", b"goodbye", retain=True)
    device.close()
    assert until(watcher, Incoming).payload == b"goodbye"
    assert watcher.receive(0.5) is None


def test_close_twice_is_quiet(connect: Connect) -> None:
    device = connect("device", "a/b")
    device.close()
    device.close()


def test_filters_isolate_devices(connect: Connect) -> None:
    one, other, sender = connect("one", "f/one/down"), connect("other", "f/other/down"), connect("sender", "f/+/up")
    sender.publish("f/one/down", b"1")
    sender.publish("f/one/chunk/down", b"2")
    one.publish("f/one/up", b"3")
    one.publish("f/one/chunk/up", b"4")
    assert until(one, Incoming).payload == b"1"
    assert until(sender, Incoming) == Incoming("f/one/up", b"3")
    assert (one.receive(0.2), other.receive(0.2), sender.receive(0.2)) == (None, None, None)


def test_messages_of_one_topic_keep_their_order(connect: Connect) -> None:
    here, there = connect("here", "a/+/up"), connect("there")
    for number in range(300):
        there.publish("a/b/up", str(number).encode())
    assert [int(until(here, Incoming).payload) for _ in range(300)] == list(range(300))


def test_chunk_sized_payload_arrives_whole(connect: Connect) -> None:
    here, there = connect("here", "a/here"), connect("there")
    payload = os.urandom(128 * 1024 + 512)
    there.publish("a/here", payload)
    assert until(here, Incoming).payload == payload


def test_link_goes_down_and_up_when_broker_restarts(wire: Wire, connect: Connect) -> None:
    here, there = connect("here", "a/here"), connect("there")
    wire.kill()
    assert until(here, LinkDown).reason not in ("", "Unspecified error")
    until(there, LinkDown)
    there.publish("a/here", b"lost")
    wire.restart()
    until(here, LinkUp)
    until(there, LinkUp)
    there.publish("a/here", b"found")
    assert until(here, Incoming).payload == b"found"


def test_connect_to_stopped_broker_names_it(wire: Wire) -> None:
    wire.kill()
    with closing(wire.transport("device")) as device, pytest.raises(BrokerUnreachableError, match=r"no broker answers"):
        device.connect()


def test_broker_that_did_not_answer_may_be_tried_again(wire: Wire) -> None:
    wire.kill()
    with closing(wire.transport("device")) as device:
        for _ in range(2):
            with pytest.raises(BrokerUnreachableError):
                device.connect()
        wire.restart()
        device.connect()
        assert until(device, LinkUp) == LinkUp()


# -- MQTT alone


@pytest.fixture
def mosquitto() -> Iterator[Broker]:
    with mosquitto_broker({"device": "s3cret-word"}) as broker:
        yield broker


@pytest.mark.mosquitto
def test_connect_with_wrong_password_says_so_without_the_password(mosquitto: Broker) -> None:
    wrong = Credentials("device", "wr0ng-word")
    device = MqttTransport(mosquitto.address, "device", (), credentials=wrong)
    with pytest.raises(BrokerUnreachableError, match="check user name, password") as caught:
        device.connect()
    assert "wr0ng-word" not in f"{caught.value}{wrong}"


@pytest.mark.mosquitto
def test_connect_with_right_password_works(mosquitto: Broker) -> None:
    with closing(MqttTransport(mosquitto.address, "device", (), credentials=Credentials("device", "s3cret-word"))) as d:
        d.connect()
        assert d.receive(5) == LinkUp()


def test_connect_to_silent_listener_gives_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = BrokerAddress("127.0.0.1", silent.getsockname()[1])
        start_s = time.monotonic()
        with pytest.raises(BrokerUnreachableError, match="no MQTT answer within 5 s"):
            MqttTransport(address, "device", ()).connect()
    assert time.monotonic() - start_s < 9


@pytest.mark.parametrize(
    ("run_broker", "most"),
    [
        pytest.param(iotcore_broker, 100, marks=pytest.mark.beyond_base),
        pytest.param(mosquitto_broker, 10, marks=pytest.mark.mosquitto),
    ],
    ids=["iotcore, its own limit", "mosquitto, our Receive Maximum"],
)
def test_unread_messages_wait_at_the_broker(
    run_broker: Callable[[], AbstractContextManager[Broker]], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_MAX_UNREAD", most)
    with run_broker() as broker, ExitStack() as stack:
        slow = stack.enter_context(closing(MqttTransport(broker.address, "slow", ("a/slow",))))
        fast = stack.enter_context(closing(MqttTransport(broker.address, "fast", ())))
        slow.connect()
        fast.connect()
        for number in range(400):
            fast.publish("a/slow", str(number).encode())
        time.sleep(1)
        assert 0 < slow._queue.qsize() <= most + 1, "the messages and one LinkUp"
        assert [int(until(slow, Incoming).payload) for _ in range(400)] == list(range(400))


@pytest.mark.beyond_base
def test_frozen_broker_blocks_neither_publish_nor_close() -> None:
    with iotcore_broker() as broker:
        device = MqttTransport(broker.address, "device", ())
        device.connect()
        os.kill(broker.process_id, signal.SIGSTOP)
        try:
            start_s = time.monotonic()
            for _ in range(1000):
                device.publish("a/b", bytes(128 * 1024))
            unsent = len(device._client._out_messages)
            device.close()
            assert time.monotonic() - start_s < 4
            assert 0 < unsent <= 512
        finally:
            os.kill(broker.process_id, signal.SIGCONT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mqtt://localhost", BrokerAddress("localhost", 1883)),
        ("mqtts://broker.example", BrokerAddress("broker.example", 8883, tls=True)),
        ("mqtt://[::1]:1999", BrokerAddress("::1", 1999)),
    ],
)
def test_address_is_read_and_written_back(text: str, expected: BrokerAddress) -> None:
    assert BrokerAddress.parse(text) == expected
    assert BrokerAddress.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:1883",
        "http://x",
        "mqtt://",
        "mqtt://x:99999",
        "mqtt://x:y",
        "mqtt://x/path",
        "mqtt://[x",
        "mqtt://a..b",
        f"mqtt://{64 * 'a'}.example",
    ],
)
def test_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="mqtt://host:port"):
        BrokerAddress.parse(text)


def test_address_with_password_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConfigurationError, match="apart from the address") as caught:
        BrokerAddress.parse("mqtt://user:s3cret-word@host")
    assert "s3cret-word" not in str(caught.value)


@pytest.mark.parametrize("host", ["broker.example", "10.0.0.1", "127.0.0.1.example"])
def test_plaintext_off_this_machine_is_refused_unless_allowed(host: str) -> None:
    address = BrokerAddress(host, 1883)
    with pytest.raises(ConfigurationError, match="use mqtts://"):
        MqttTransport(address, "device", ())
    MqttTransport(address, "device", (), allow_plaintext=True)


def test_missing_ca_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.pem"):
        MqttTransport(BrokerAddress("localhost", 8883, tls=True), "device", (), ca_file=tmp_path / "absent.pem")


@pytest.mark.timeout(30)
def test_receive_ends_in_time_whatever_signals_come(connect: Connect) -> None:
    """A signal that came just before the timeout had an agent wait for ever: its SIGTERM."""
    here, ended = connect("here"), threading.Event()

    def work_a_little(*_: object) -> None:
        until_s = time.perf_counter() + 0.0005
        while time.perf_counter() < until_s:
            pass

    def send_signals(thread: int) -> None:
        while not ended.wait(0.0007):
            signal.pthread_kill(thread, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, work_a_little)
    sender = threading.Thread(target=send_signals, args=(threading.get_ident(),))
    sender.start()
    try:
        for _ in range(300):
            here.receive(0.002)
    finally:
        ended.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
