"""What a broker may say, allow or do that ours does not: the link works, or one line says what is wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from edge_sdk.errors import BrokerUnreachableError
from edge_sdk.protocol.messages import MAX_PAYLOAD_BYTES
from edge_sdk.transport import mqtt
from edge_sdk.transport.address import BrokerAddress, MqttVersion
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp, Will
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import Mosquitto, mosquitto_broker
from tests.support.exchange_node import wait

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP, DISCONNECT = 0x20, 0x32, 0x40, 0x90, 0xD0, 0xE0
TAKEN_OVER, NOT_AUTHORIZED = 142, 135
RECEIVE_MAXIMUM_3 = b"\x21\x00\x03"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_RECONNECT_FIRST_S", (0.05, 0.05))


def packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([kind, len(body)]) + body


class Scripted:
    """A broker that says to each connection of its one client what a test wants."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self._links: list[socket.socket] = []
        self.address = BrokerAddress(*self._listener.getsockname())

    def close(self) -> None:
        for opened in (self._listener, *self._links):
            opened.close()

    def accept(self, *, properties: bytes = b"", granted: int | None = 1) -> socket.socket:
        """The next connection, subscribed where that is ``granted``; ``None`` leaves it without an answer."""
        link, _ = self._listener.accept()
        link.settimeout(10)
        self._links.append(link)
        link.recv(4096)
        link.sendall(packet(CONNACK, b"\0\0" + bytes([len(properties)]) + properties))
        subscribe = link.recv(4096)
        if granted is not None:
            link.sendall(packet(SUBACK, subscribe[2:4] + b"\0" + bytes([granted])))
        return link

    def connected(self, *, properties: bytes = b"", keepalive_s: int = 60) -> tuple[MqttTransport, socket.socket]:
        device = MqttTransport(self.address, "device", ("a/b",), keepalive_s=keepalive_s)
        connecting = threading.Thread(target=device.connect)
        connecting.start()
        link = self.accept(properties=properties)
        connecting.join()
        assert device.receive(5) == LinkUp()
        return device, link


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with closing(Scripted()) as broker:
        yield broker


def heard(device: MqttTransport, seconds: float) -> list[object]:
    """What is delivered in so long."""
    until_s = time.monotonic() + seconds
    found = []
    while (left_s := until_s - time.monotonic()) > 0:
        found += [delivery for delivery in [device.receive(left_s)] if delivery is not None]
    return found


# -- sizes


@pytest.mark.mosquitto
def test_message_that_the_broker_cuts_off_does_not_keep_the_link_down(caplog: pytest.LogCaptureFixture) -> None:
    """MQTT 3.1.1 has no way to say what is too large. Whoever needs it says it again, as an offer is."""
    with (
        mosquitto_broker(lines=["max_packet_size 20000"]) as broker,
        closing(MqttTransport(broker.address, "device", ("a/b",), version=MqttVersion.V311)) as device,
    ):
        device.connect()
        assert device.receive(5) == LinkUp()
        for _ in range(2):
            device.publish("a/b", bytes(50_000))
            assert isinstance(device.receive(5), LinkDown)
            assert device.receive(5) == LinkUp()
        assert not device.publish("a/b", bytes(50_000))
        assert device.publish("a/b", b"small")
        assert heard(device, 1) == [Incoming("a/b", b"small")]
    assert "a message of 50000 bytes is not sent: it takes messages of at most 17408 bytes" in caplog.text


@pytest.mark.mosquitto
@pytest.mark.parametrize("too_little", [9000, 40_000])
def test_broker_whose_limit_is_raised_is_taken_at_its_new_word(too_little: int) -> None:
    with mosquitto_broker() as broker, closing(MqttTransport(broker.address, "device", ("a/b",))) as device:
        device.connect()
        assert device.receive(5) == LinkUp()
        for line in (f"max_packet_size {too_little}", ""):
            broker.kill()
            configure(broker, line)
            broker.restart()
            heard(device, 1)
        device.publish("a/b", bytes(50_000))
        assert Incoming("a/b", bytes(50_000)) in heard(device, 1)


def configure(broker: Mosquitto, line: str) -> None:
    file = Path(broker._command[-1])
    kept = [known for known in file.read_text().splitlines() if not known.startswith("max_packet_size")]
    file.write_text("\n".join([*kept, line, ""]))


@pytest.mark.mosquitto
def test_packet_that_no_message_can_be_stays_at_the_broker() -> None:
    """A device may publish what it likes; a broker would deliver 256 MB of it, in each of 64 messages."""
    with (
        mosquitto_broker() as broker,
        closing(MqttTransport(broker.address, "coordinator", ("a/+",))) as coordinator,
        closing(MqttTransport(broker.address, "device", ())) as device,
    ):
        coordinator.connect()
        device.connect()
        device._client.publish("a/up", bytes(1 << 20), qos=1)
        device.publish("a/up", bytes(MAX_PAYLOAD_BYTES))
        assert heard(coordinator, 1) == [LinkUp(), Incoming("a/up", bytes(MAX_PAYLOAD_BYTES))]


# -- what it grants


def test_no_more_is_on_its_way_than_the_broker_grants_also_after_a_cut(scripted: Scripted) -> None:
    device, link = scripted.connected(properties=RECEIVE_MAXIMUM_3)
    with closing(device):
        for _ in range(2):
            for _ in range(10):
                device.publish("a/b", b"said")
            assert said(link) == 3
            link.close()
            link = scripted.accept(properties=RECEIVE_MAXIMUM_3)
            assert [type(delivery) for delivery in heard(device, 0.2)] == [LinkDown, LinkUp]
        assert said(link) == 0
        link.close()


def test_messages_of_qos_0_that_nobody_reads_take_no_memory(scripted: Scripted) -> None:
    """No grant bounds them, and nothing of this protocol comes so: those that find no room are lost."""
    device, link = scripted.connected()
    with closing(device):
        link.sendall(packet(0x30, b"\0\3a/b\0once") * 5000 + packet(PUBLISH, b"\0\3a/b\0\7\0kept"))
        wait(lambda: device.unread() > 64)
        assert device.unread() == 65
        assert heard(device, 0.3) == [*[Incoming("a/b", b"once")] * 64, Incoming("a/b", b"kept")]


def said(link: socket.socket) -> int:
    """How many messages the client sends that nobody acknowledges."""
    time.sleep(0.3)
    link.settimeout(0.1)
    try:
        return link.recv(1 << 16).count(b"said")
    except TimeoutError:
        return 0


@pytest.mark.mosquitto
@pytest.mark.parametrize("will", [Will("a/w", b"gone"), None], ids=["device", "coordinator"])
def test_broker_that_keeps_nothing_is_refused_by_name(will: Will | None) -> None:
    with (
        mosquitto_broker(lines=["retain_available false"]) as broker,
        closing(MqttTransport(broker.address, "device", ("a/b",), will=will)) as device,
        pytest.raises(BrokerUnreachableError, match="retain_available"),
    ):
        device.connect()


def test_subscription_that_is_refused_later_is_asked_for_ever_more_seldom(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    device, link = scripted.connected()
    with closing(device):
        link.close()
        tried_s = []
        for _ in range(5):
            scripted.accept(granted=NOT_AUTHORIZED)
            tried_s.append(time.monotonic())
        gaps_s = [later - earlier for earlier, later in pairwise(tried_s)]
        assert all(gap_s > 0.08 * 2**number for number, gap_s in enumerate(gaps_s)), gaps_s
        assert caplog.text.count("no subscription to 'a/b' is allowed") == 1
        scripted.accept()
        assert [type(delivery) for delivery in heard(device, 0.2)] == [LinkDown, LinkUp]


def test_subscription_that_is_not_answered_later_is_asked_for_again(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    device, link = scripted.connected(keepalive_s=1)
    with closing(device):
        link.close()
        answering = threading.Thread(target=answer_pings, args=(scripted.accept(granted=None),))
        answering.start()
        while answering.is_alive():
            device.receive(0.1)
        scripted.accept()
        assert heard(device, 0.2) == [LinkUp()]
    assert caplog.text.count("no answer to the subscription within 1 s") == 1


def answer_pings(link: socket.socket) -> None:
    with suppress(ConnectionError):
        while link.recv(16):
            link.sendall(packet(PINGRESP, b""))


# -- another client of the same name


def test_client_whose_name_another_takes_says_so_and_comes_back_ever_more_seldom(scripted: Scripted) -> None:
    device, link = scripted.connected()
    with closing(device):
        tried_s = []
        for _ in range(5):
            link.sendall(packet(DISCONNECT, bytes([TAKEN_OVER])))
            link = scripted.accept()
            tried_s.append(time.monotonic())
        cuts = [delivery for delivery in heard(device, 0.2) if isinstance(delivery, LinkDown)]
    gaps_s = [later - earlier for earlier, later in pairwise(tried_s)]
    assert all(gap_s > 0.08 * 2**number for number, gap_s in enumerate(gaps_s)), gaps_s
    assert all("does another client call itself 'device'?" in cut.reason for cut in cuts)


@pytest.mark.mosquitto
def test_clients_of_one_name_are_told_where_the_broker_does_not_say_it() -> None:
    with (
        mosquitto_broker() as broker,
        closing(MqttTransport(broker.address, "device", ())) as one,
        closing(MqttTransport(broker.address, "device", ())) as other,
    ):
        one.connect()
        other.connect()
        cuts = [delivery.reason for delivery in heard(one, 2) if isinstance(delivery, LinkDown)]
    assert "does another client call itself 'device'?" in cuts[3]


# -- bytes


@pytest.mark.parametrize(
    "said",
    [
        packet(PUBLISH, b"\0\x03a/b\0"),
        packet(PUBLISH, b"\x70\x03a/b\0\x01\0x"),
        packet(PUBLISH, b"\0\x03a/b\0\x01\x07\x26\0\x01k\0\x01\xffx"),
        packet(PUBLISH, b"\0\x01\xff\0\x01\0x"),
        packet(PUBACK, b"\0\x01\xc8\0"),
        packet(SUBACK, b"\0\x01\0\x7f"),
        packet(SUBACK, b""),
        packet(CONNACK, b"\0\xff\0"),
        packet(DISCONNECT, b"\xff\0"),
        packet(0xF0, b"\x18\0"),
        packet(0x00, b"x"),
        b"\x32\xff\xff\xff\xff\xff",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=lambda said: said.hex()[:16],
)
def test_whatever_a_broker_says_the_link_comes_back(scripted: Scripted, said: bytes) -> None:
    device, link = scripted.connected()
    with closing(device):
        link.sendall(said)
        time.sleep(0.05)
        link.close()
        scripted.accept()
        assert [*map(type, heard(device, 0.2))][-2:] == [LinkDown, LinkUp]


# A process of its own: whatever a test's process lets go of meanwhile would be a file that select can wait for.
_APPLICATION = """
import logging, resource, sys
from contextlib import ExitStack, closing, contextmanager
from edge_sdk.errors import BrokerUnreachableError
from edge_sdk.transport import mqtt
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.base import LinkDown, LinkUp
from edge_sdk.transport.mqtt import MqttTransport

@contextmanager
def many_open_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with ExitStack() as held:
        for _ in range(1100):
            held.enter_context(open("/dev/null"))
        yield

logging.basicConfig()
mqtt._RECONNECT_FIRST_S = (0.05, 0.05)
device = MqttTransport(BrokerAddress("127.0.0.1", int(sys.argv[1])), "device", ("a/b",))
"""
_CONNECTS = """
with closing(device), many_open_files():
    try:
        device.connect()
    except BrokerUnreachableError as refused:
        sys.exit(str(refused))
"""
_CONNECTS_AGAIN = """
def say(word):
    print(word, flush=True)
    sys.stdin.readline()

with closing(device):
    device.connect()
    assert device.receive(5) == LinkUp()
    say("connected")
    assert isinstance(device.receive(5), LinkDown)
    with many_open_files():
        say("crowded")
    assert device.receive(20) == LinkUp()
    say("connected")
"""
_SAYS = "this process has more than 1023 open files, and MQTT needs one of the first"


def application(does: str, address: BrokerAddress) -> list[str]:
    return [sys.executable, "-c", _APPLICATION + does, str(address.port)]


def test_application_with_too_many_open_files_for_select_is_told_so(scripted: Scripted) -> None:
    command = application(_CONNECTS, scripted.address)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert _SAYS in ended.stderr


@pytest.mark.mosquitto
def test_application_that_opens_too_many_files_later_is_told_so_and_connects_once_it_can() -> None:
    pipe = subprocess.PIPE
    with (
        mosquitto_broker() as broker,
        subprocess.Popen(
            application(_CONNECTS_AGAIN, broker.address), stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1
        ) as running,
    ):
        asked, said, logged = running.stdin, running.stdout, running.stderr
        assert asked is not None
        assert said is not None
        assert logged is not None
        assert said.readline() == "connected\n"
        asked.write("\n")
        broker.kill()
        assert said.readline() == "crowded\n"
        broker.restart()
        assert any(_SAYS in line for line in logged)
        asked.write("\n")
        assert said.readline() == "connected\n"
        asked.write("\n")
        assert running.wait(10) == 0
