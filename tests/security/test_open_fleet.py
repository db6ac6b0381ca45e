"""An open fleet: a token is a password, and opens one device's branch of topics at the broker, nothing else.

Mosquitto runs with what `coordinator broker config` writes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.fleet import cutting
from coordinator.fleet.cutting import cut_off
from coordinator.fleet.folder import Fleet, FleetSettings, init_fleet, link_of
from coordinator.fleet.joining import new_token
from coordinator.fleet.mosquitto import write_configuration
from coordinator.fleet.passwords import PASSWORD_FILE
from coordinator.fleet.revocation import revoke_device
from coordinator.service import mqtt_transport
from coordinator.store.database import Store
from edge_sdk.errors import BrokerUnreachableError, ConfigurationError
from edge_sdk.protocol.topics import Channel, Topic
from edge_sdk.transport.address import BrokerAddress, Credentials
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import ConfiguredMosquitto, free_port
from tests.support.secured import new_store

pytestmark = [pytest.mark.mosquitto, pytest.mark.xdist_group("open_fleet")]
BAR_S = 5.0


@dataclass(frozen=True)
class OpenFleet:
    fleet: Fleet
    store: Store
    broker: ConfiguredMosquitto

    def token(self, device: str) -> str:
        wanted = {"device": device, "group": None, "hours": None}
        return new_token(self.store, self.fleet, **wanted, now_s=time.time(), who="a test")[0]

    def link(
        self, user: str, secret: str, *, client_id: str | None = None, filters: tuple[str, ...] = ()
    ) -> MqttTransport:
        credentials = Credentials(user, secret)
        ca_file = self.fleet.authority_file
        return MqttTransport(self.broker.address, client_id or user, filters, credentials=credentials, ca_file=ca_file)

    @contextmanager
    def connected(self, device: str, secret: str, **more: object) -> Iterator[MqttTransport]:
        """The broker hears of a new token within moments."""
        give_up_s = time.monotonic() + BAR_S
        while True:
            link = self.link(device, secret, **more)
            try:
                link.connect()
            except BrokerUnreachableError:
                link.close()
                assert time.monotonic() < give_up_s
                time.sleep(0.05)
                continue
            break
        with closing(link):
            assert link.receive(BAR_S) == LinkUp()
            yield link

    def coordinator(self) -> MqttTransport:
        state = self.fleet.state_dir
        return mqtt_transport(CoordinatorConfig(state_dir=state, **link_of(state, None, None, None, None)))


@contextmanager
def open_fleet(folder: Path, scheme: str) -> Iterator[OpenFleet]:
    port = free_port()
    settings = FleetSettings(name="default", hosts=("127.0.0.1",), broker=f"{scheme}://127.0.0.1:{port}", is_open=True)
    fleet = init_fleet(folder, settings)
    store = new_store(folder)
    broker = ConfiguredMosquitto(write_configuration(store, fleet, user="root"), BrokerAddress.parse(settings.broker))
    try:
        yield OpenFleet(fleet, store, broker)
    finally:
        broker.kill()
        store.close()


@pytest.fixture(scope="module", params=["mqtts", "mqtt"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenFleet]:
    with open_fleet(tmp_path_factory.mktemp("open"), request.param) as made:
        yield made


def up(device: str) -> str:
    return str(Topic("default", device, Channel.UP))


def down(device: str) -> str:
    return str(Topic("default", device, Channel.DOWN))


def refused(link: MqttTransport) -> bool:
    with closing(link):
        try:
            link.connect()
        except BrokerUnreachableError:
            return True
    return False


# -- who gets in


def test_device_joins_with_nothing_but_its_token(opened: OpenFleet) -> None:
    secret = opened.token("pi-5")
    with (
        opened.connected("pi-5", secret, filters=(down("pi-5"),)) as device,
        closing(opened.coordinator()) as coordinator,
    ):
        coordinator.connect()
        assert coordinator.receive(BAR_S) == LinkUp()
        device.publish(up("pi-5"), b"hello")
        assert coordinator.receive(BAR_S) == Incoming(up("pi-5"), b"hello")
        coordinator.publish(down("pi-5"), b"work")
        assert device.receive(BAR_S) == Incoming(down("pi-5"), b"work")


def test_nobody_else_gets_in(opened: OpenFleet) -> None:
    mine, hers = opened.token("mine"), opened.token("hers")
    with opened.connected("mine", mine), opened.connected("hers", hers):
        pass
    for user, secret in (("mine", "raffm_device_wrong"), ("mine", hers), ("mine", ""), ("ghost", mine)):
        assert refused(opened.link(user, secret)), user
    address = opened.broker.address
    assert refused(MqttTransport(address, "mine", (), ca_file=opened.fleet.authority_file)), "without a name"
    for user in ("coordinator@default", "mine\nother"):
        assert refused(opened.link(user, mine)), user


def test_token_opens_its_own_branch_alone(opened: OpenFleet) -> None:
    intruder, victim = opened.token("intruder"), opened.token("victim")
    listening = (down("victim"), "#", down("intruder"))
    with (
        opened.connected("victim", victim, filters=(down("victim"),)) as theirs,
        opened.connected("intruder", intruder, client_id="victim", filters=listening) as mine,
        closing(opened.coordinator()) as coordinator,
    ):
        coordinator.connect()
        assert coordinator.receive(BAR_S) == LinkUp()
        mine.publish(up("victim"), b"lie")
        mine.publish(down("victim"), b"lie")
        coordinator.publish(down("victim"), b"secret")
        assert theirs.receive(BAR_S) == Incoming(down("victim"), b"secret"), "neither cut off nor lied to"
        coordinator.publish(down("intruder"), b"own")
        assert mine.receive(BAR_S) == Incoming(down("intruder"), b"own")
        mine.publish(up("intruder"), b"own")
        assert coordinator.receive(BAR_S) == Incoming(up("intruder"), b"own")


# -- who is put out


def test_revoked_device_is_out_within_seconds_while_others_go_on(opened: OpenFleet) -> None:
    thief, other = opened.token("thief"), opened.token("other")
    with opened.connected("thief", thief) as gone, opened.connected("other", other) as stays:
        began_s = time.monotonic()
        revoke_device(opened.store, "thief", time.time(), "ann")
        assert cut_off(opened.store, opened.fleet, "thief") < BAR_S
        assert isinstance(gone.receive(BAR_S), LinkDown)
        assert time.monotonic() - began_s < BAR_S
        assert refused(opened.link("thief", thief))
        assert stays.receive(1.0) is None
    listed = (opened.fleet.broker_dir / PASSWORD_FILE).read_text()
    assert "thief:" not in listed
    assert "stand-in" not in listed
    with opened.connected("thief", opened.token("thief")):
        assert opened.store
    with opened.store.reading() as tx:
        assert tx.devices.get("thief").revoked_s is None


def test_session_outlives_a_revocation_that_the_broker_is_not_told_of(opened: OpenFleet) -> None:
    """The control."""
    with opened.connected("kept", opened.token("kept")) as kept:
        revoke_device(opened.store, "kept", time.time(), "ann")
        assert kept.receive(1.0) is None


def test_new_token_takes_the_place_of_the_old_one(opened: OpenFleet) -> None:
    old = opened.token("pi-4")
    with opened.connected("pi-4", old) as before:
        new = opened.token("pi-4")
        assert isinstance(before.receive(BAR_S), LinkDown)
        assert refused(opened.link("pi-4", old))
    with opened.connected("pi-4", new):
        pass


def test_broker_that_is_not_seen_to_know_is_said(opened: OpenFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened.connected("unseen", opened.token("unseen")):
        pass
    monkeypatch.setattr(cutting, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(cutting, "_reload", lambda _: None)
    revoke_device(opened.store, "unseen", time.time(), "ann")
    with pytest.raises(BrokerUnreachableError, match=r"unseen is revoked, but the broker at .* was not seen to know"):
        cut_off(opened.store, opened.fleet, "unseen")
    monkeypatch.undo()
    assert cut_off(opened.store, opened.fleet, "unseen") < BAR_S


# -- what is nowhere


def test_tokens_are_nowhere_but_where_they_were_printed(opened: OpenFleet) -> None:
    secret = opened.token("pi-3")
    with opened.connected("pi-3", secret):
        for file in opened.fleet.state_dir.rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file
    assert secret not in opened.broker.said
    assert (opened.fleet.broker_dir / PASSWORD_FILE).stat().st_mode & 0o077 == 0


def test_plaintext_is_not_heard_by_other_machines(opened: OpenFleet) -> None:
    address = opened.broker.address
    if address.tls:
        with socket.create_connection((address.host, address.port)) as plain:
            plain.sendall(b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc")
            plain.settimeout(BAR_S)
            with suppress(ConnectionResetError):
                assert not plain.recv(64).startswith(b"\x20"), "no CONNACK without TLS"
        return
    settings = opened.fleet.settings
    assert f"listener {address.port} 127.0.0.1\n" in (opened.fleet.broker_dir / "mosquitto.conf").read_text()
    with pytest.raises(
        ConfigurationError, match=r"a listener without TLS on 0\.0\.0\.0 would let the network read tokens"
    ):
        write_configuration(opened.store, opened.fleet, user="root", bind="0.0.0.0")  # noqa: S104 - what is refused
    with pytest.raises(ConfigurationError, match="use mqtts://, or allow plaintext explicitly"):
        FleetSettings(name="default", hosts=("a.example",), broker="mqtt://a.example:1883", is_open=True)
    assert settings.allow_plaintext is False


def test_plaintext_to_other_machines_has_to_be_allowed_and_is_then_said_to_the_device(tmp_path: Path) -> None:
    settings = FleetSettings(
        name="default", hosts=("a.example",), broker="mqtt://a.example:1883", is_open=True, allow_plaintext=True
    )
    fleet = init_fleet(tmp_path, settings)
    with closing(new_store(tmp_path)) as store:
        file = write_configuration(store, fleet, user="root")
        assert "listener 1883\n" in file.read_text()
        assert "certfile" not in file.read_text()
        _, line = new_token(store, fleet, device="pi-5", group=None, hours=None, now_s=1.0, who="ann")
    assert line.startswith("edge-agent run --device pi-5 --broker mqtt://a.example:1883 ")
    assert line.endswith("--allow-plaintext")


def test_token_of_an_open_fleet_is_one_device_s(opened: OpenFleet) -> None:
    with pytest.raises(ConfigurationError, match="a token is the password of one device: give --device"):
        new_token(opened.store, opened.fleet, device=None, group=None, hours=None, now_s=1.0, who="ann")
