"""TLS to a broker: what connects, and in one clear line what does not."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from edge_sdk.errors import BrokerUnreachableError
from edge_sdk.transport import mqtt
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.authority import Authority
from tests.support.broker import mosquitto_broker

pytestmark = pytest.mark.mosquitto


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def sends_at_once(device: MqttTransport) -> bool:
    """Whether the kernel holds no small message back until the one before it is acknowledged."""
    return bool(device._client.socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def refusal(address: BrokerAddress, ca_file: Path | None) -> str:
    """What is said of a connection that must fail, at once and in one line."""
    began_s = time.monotonic()
    with closing(MqttTransport(address, "device", ("a/b",), ca_file=ca_file)) as device:
        with pytest.raises(BrokerUnreachableError) as caught:
            device.connect()
        assert time.monotonic() - began_s < 4
    text = str(caught.value)
    assert "\n" not in text
    assert str(address) in text
    return text


def test_message_passes_a_broker_whose_authority_is_given(authority: Authority) -> None:
    with mosquitto_broker(server=authority.server()) as broker:
        device = MqttTransport(broker.address, "device", ("a/b",), ca_file=authority.ca_file)
        with closing(device):
            device.connect()
            assert device.receive(5) == LinkUp()
            device.publish("a/b", b"hello")
            assert device.receive(5) == Incoming("a/b", b"hello")
            assert sends_at_once(device)


def test_link_without_tls_sends_at_once_too_and_again_after_the_broker_was_away() -> None:
    with mosquitto_broker() as broker, closing(MqttTransport(broker.address, "device", ("a/b",))) as device:
        device.connect()
        assert device.receive(5) == LinkUp()
        assert sends_at_once(device)
        broker.kill()
        assert isinstance(device.receive(5), LinkDown)
        broker.restart()
        assert device.receive(10) == LinkUp()
        assert sends_at_once(device)


def test_authority_that_did_not_sign_is_no_help(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "another authority")
    with mosquitto_broker(server=authority.server()) as broker:
        for ca_file in (other.ca_file, None):
            text = refusal(broker.address, ca_file)
            assert "is not trusted" in text
            assert "--ca-file" in text


def test_broker_that_comes_back_with_another_authority_is_trusted_once_its_file_says_so(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_RECONNECT_FIRST_S", (0.1, 0.1))
    monkeypatch.setattr(mqtt, "_RECONNECT_LAST_S", (0.1, 0.1))
    other, known = Authority(tmp_path, "another authority"), tmp_path / "known.pem"
    known.write_bytes(authority.ca_file.read_bytes())
    with mosquitto_broker(server=authority.server()) as broker:
        device = MqttTransport(broker.address, "device", ("a/b",), ca_file=known)
        with closing(device):
            device.connect()
            assert device.receive(5) == LinkUp()
            broker.kill()
            assert isinstance(device.receive(5), LinkDown)
            configuration = Path(broker._command[-1])
            lines = configuration.read_text()
            for old, new in zip(authority.server(), other.server(), strict=True):
                lines = lines.replace(str(old), str(new))
            configuration.write_text(lines)
            broker.restart()
            assert device.receive(1) is None, "nobody has told it of the other authority"
            known.write_bytes(other.ca_file.read_bytes())
            assert device.receive(5) == LinkUp()


def test_expired_certificate_is_refused(authority: Authority) -> None:
    with mosquitto_broker(server=authority.server(expired=True)) as broker:
        text = refusal(broker.address, authority.ca_file)
    assert "certificate has expired" in text
    assert "clock" in text


@pytest.mark.parametrize("host", ["broker.example", "127.0.0.2"])
def test_certificate_of_another_host_is_refused(authority: Authority, host: str) -> None:
    with mosquitto_broker(server=authority.server(host)) as broker:
        text = refusal(broker.address, authority.ca_file)
    assert "mismatch" in text
    assert "use the name that its certificate is for" in text


def test_tls_to_a_port_without_tls_says_so(authority: Authority) -> None:
    with mosquitto_broker() as broker:
        address = BrokerAddress(broker.address.host, broker.address.port, tls=True)
        assert "check that this is the port for TLS" in refusal(address, authority.ca_file)


def test_plaintext_to_a_port_for_tls_says_so(authority: Authority) -> None:
    with mosquitto_broker(server=authority.server()) as broker:
        text = refusal(BrokerAddress(broker.address.host, broker.address.port), None)
    assert "check that the port is for MQTT without TLS" in text


def test_handshake_that_nobody_answers_gives_up(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_CONNECT_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = BrokerAddress("127.0.0.1", silent.getsockname()[1], tls=True)
        assert "timed out" in refusal(address, authority.ca_file)
