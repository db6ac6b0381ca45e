"""The proxy that fault tests stand on: each fault is what it says, and the same seed brings the same ones."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from edge_sdk.transport.address import BrokerAddress
from tests.support.broker import free_port
from tests.support.fault_proxy import BLOCK_BYTES, Fault, FaultProxy, Place, Weather, fault_in

DATA = bytes(range(256)) * (4 * BLOCK_BYTES // 256)


class Echo:
    """A server on loopback that sends back what it gets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1])
        self.ends: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError as error:
                self.ends.append(type(error).__name__)
            else:
                self.ends.append("closed")


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def through(proxy: FaultProxy, echo: Echo, weather: Weather, data: bytes = DATA) -> tuple[bytes, str]:
    """What comes back through a new gate, and how it ended."""
    gate = proxy.gate("client", echo.address, weather)
    back = bytearray()
    with socket.create_connection((gate.host, gate.port), timeout=5) as client:
        sender = threading.Thread(target=_send, args=(client, data))
        sender.start()
        try:
            while len(back) < len(data):
                piece = client.recv(1 << 16)
                if not piece:
                    return bytes(back), "closed"
                back += piece
        except ConnectionError:
            return bytes(back), "reset"
        finally:
            sender.join()
    return bytes(back), "whole"


def _send(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:
        return


def test_clear_weather_changes_nothing(echo: Echo) -> None:
    with FaultProxy(0) as proxy:
        assert through(proxy, echo, Weather()) == (DATA, "whole")
        assert proxy.carried_bytes >= 2 * len(DATA) - BLOCK_BYTES
        assert not proxy.happened


def test_garbling_changes_one_bit_at_a_time(echo: Echo) -> None:
    with FaultProxy(1) as proxy:
        back, how = through(proxy, echo, Weather(garbles=1.0))
    wrong = [(sent ^ came).bit_count() for sent, came in zip(DATA, back, strict=True) if sent != came]
    assert how == "whole"
    assert 1 <= len(wrong) <= 8
    assert set(wrong) == {1}


@pytest.mark.parametrize(
    ("weather", "how"),
    [(Weather(resets=1.0), "reset"), (Weather(closes=1.0), "closed"), (Weather(half_opens=1), "reset")],
)
def test_connection_that_ends_gives_less_than_was_sent(echo: Echo, weather: Weather, how: str) -> None:
    with FaultProxy(2) as proxy:
        back, ended = through(proxy, echo, weather)
    assert DATA.startswith(back)
    assert len(back) < len(DATA)
    assert ended in {how, "reset"}  # closed while the client still sends: its kernel may tell that as a reset


def test_half_open_link_is_dead_at_the_broker_before_its_client_hears(echo: Echo) -> None:
    with FaultProxy(3) as proxy:
        began_s = time.monotonic()
        through(proxy, echo, Weather(half_opens=1.0, silence_s=0.5))
        assert time.monotonic() - began_s >= 0.1
        assert proxy.happened[Fault.HALF_OPEN] == 1
    assert echo.ends == ["ConnectionResetError"]


def test_silence_delays_everything_and_loses_nothing(echo: Echo) -> None:
    with FaultProxy(4) as proxy:
        began_s = time.monotonic()
        assert through(proxy, echo, Weather(silences=1.0, silence_s=0.3)) == (DATA, "whole")
        assert time.monotonic() - began_s >= 0.06


def test_throttle_and_delay_cost_the_time_that_they_say(echo: Echo) -> None:
    with FaultProxy(5) as proxy:
        began_s = time.monotonic()
        through(proxy, echo, Weather(bytes_per_s=40_000), DATA[:8000])
        assert 0.2 <= time.monotonic() - began_s < 2
        began_s = time.monotonic()
        through(proxy, echo, Weather(delay_s=0.4), b"x")
        drawn = sum(Place(5, "client", 0, way).draw("delay").random() for way in ("up", "down"))
        assert 0.4 * drawn <= time.monotonic() - began_s < 0.4 * drawn + 1


def test_broker_that_is_gone_refuses_through_the_gate_too() -> None:
    with FaultProxy(6) as proxy:
        gate = proxy.gate("client", BrokerAddress("127.0.0.1", free_port()))
        with socket.create_connection((gate.host, gate.port), timeout=5) as client:
            assert not client.recv(1)


def test_cut_resets_what_is_open(echo: Echo) -> None:
    with FaultProxy(7) as proxy:
        gate = proxy.gate("client", echo.address)
        with socket.create_connection((gate.host, gate.port), timeout=5) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_same_seed_brings_the_same_faults_and_another_seed_others() -> None:
    weather = Weather(0.1, 0.1, 0.1, 0.1, 0.1)

    def faults(seed: int) -> list[object]:
        return [fault_in(weather, Place(seed, "a", 0, "up"), block) for block in range(200)]

    assert faults(1) == faults(1) != faults(2)
    assert 60 <= sum(fault is not None for fault in faults(1)) <= 140
