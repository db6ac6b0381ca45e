"""S11: who listens to the wire or stands in the middle of it gets nothing, and who has no good certificate no session.

The broker runs with what `coordinator broker config` writes.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.fleet.authority import Authority, new_key, pem_of
from coordinator.service import mqtt_transport
from edge_sdk.device.doctor import Patient
from edge_sdk.device.system import System
from edge_sdk.diagnosis.findings import Mark
from edge_sdk.diagnosis.reaching import reach
from edge_sdk.errors import BrokerUnreachableError
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.topics import Channel, Topic, coordinator_filters
from edge_sdk.transport import mqtt
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.base import LinkUp, Transport, Will
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import mosquitto_broker
from tests.support.fault_proxy import FaultProxy
from tests.support.light_model import light_models, light_task
from tests.support.proof import Proof
from tests.support.secured import SecuredFleet, secured_fleet
from tests.support.served import Served, quick
from tests.support.simulator import Fleet, small_update

pytestmark = [pytest.mark.mosquitto, pytest.mark.xdist_group("eavesdropping")]
DEVICES = ("a", "b", "c")
CONNECT = bytes.fromhex("100d00044d5154540402003c000161")  # MQTT 3.1.1, as client "a"
no_connection = pytest.mark.case("S11", "ways to connect without a good certificate, or in the open, that succeed")
Link = Callable[[str, BrokerAddress, Sequence[str], Will], Transport]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredFleet]:
    with secured_fleet(tmp_path_factory.mktemp("secured")) as fleet:
        yield fleet


def sessions(secured: SecuredFleet) -> int:
    """How many the broker has ever begun."""
    return secured.broker.said.count("New client connected")


# -- whom the broker lets in


def certificate_of(authority: Authority, folder: Path, **changes: float) -> Path:
    """A device's, and its key, in one file."""
    key = new_key()
    made = authority.device(key.public_key(), "a", "default", **{"days": 1.0, "now_s": time.time()} | changes)
    return written(folder, pem_of(key) + made.public_bytes(Encoding.PEM))


def written(folder: Path, both: bytes) -> Path:
    file = folder / "identity.pem"
    file.write_bytes(both)
    return file


def of_another_authority(secured: SecuredFleet, folder: Path) -> Path | None:
    """Which says that it is the same."""
    return certificate_of(Authority.create(secured.fleet.settings.name, new_key(), time.time()), folder)


def that_has_expired(secured: SecuredFleet, folder: Path) -> Path | None:
    return certificate_of(secured.fleet.authority, folder, now_s=time.time() - 2 * 86400)


def that_is_not_good_yet(secured: SecuredFleet, folder: Path) -> Path | None:
    return certificate_of(secured.fleet.authority, folder, now_s=time.time() + 2 * 86400, days=30)


def signed_by_itself(_: SecuredFleet, folder: Path) -> Path | None:
    own = Authority.create("a", new_key(), time.time())
    return written(folder, own.key_pem + own.certificate_pem)


def of_a_server(secured: SecuredFleet, folder: Path) -> Path | None:
    made = secured.fleet.authority.server(["a"], time.time())
    return written(folder, made.key_pem + made.certificate_pem)


def none_at_all(_: SecuredFleet, __: Path) -> Path | None:
    return None


WRONG = {
    of_another_authority: "an authority that the broker does not trust",
    that_has_expired: "its certificate has expired: enrol again",
    that_is_not_good_yet: "",
    signed_by_itself: "an authority that the broker does not trust",
    of_a_server: "",
    none_at_all: "it wants a certificate, and gets none: enrol this device",
}


@no_connection
@pytest.mark.parametrize("wrong", WRONG)
def test_no_session_for_a_certificate(
    secured: SecuredFleet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[SecuredFleet, Path], Path | None],
) -> None:
    monkeypatch.setattr(mqtt, "_TRY_AGAIN_S", (0.01, 0.01))  # a bad link would be tried as often
    before, shown = sessions(secured), wrong(secured, tmp_path)
    own = {"ca_file": secured.fleet.authority_file, "certificate_file": shown}
    with closing(MqttTransport(secured.broker.address, "a", (), **own)) as link:
        with pytest.raises(BrokerUnreachableError) as caught:
            link.connect()
        assert WRONG[wrong] in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sessions(secured) == before


def test_session_for_a_good_certificate(secured: SecuredFleet) -> None:
    """The control."""
    before = sessions(secured)
    with closing(secured.link("a")) as link:
        link.connect()
        assert link.receive(5) == LinkUp()
    assert sessions(secured) == before + 1


def test_doctor_tries_the_certificate_and_leaves_the_agent_s_session_alone(
    secured: SecuredFleet, tmp_path: Path
) -> None:
    identity = secured.enrolled("a")
    own = {"broker": str(secured.broker.address), "ca_file": identity.authority_file}
    with closing(secured.link("a")) as link:
        link.connect()
        assert link.receive(5) == LinkUp()
        *_, found = reach(Patient(System(), certificate_file=identity.file, **own))
        assert (found.mark, found.found) == (Mark.OK, f"{secured.broker.address} answers, and accepts the certificate")
        assert link.receive(0.5) is None
    foreign = of_another_authority(secured, tmp_path)
    (found,) = reach(Patient(System(), certificate_file=foreign, **own))
    assert found.mark is Mark.FAILURE
    assert "refuses this client: its certificate is of an authority that the broker does not trust" in found.found
    assert "enrol" in found.advice


def answer_to(address: BrokerAddress, context: ssl.SSLContext | None) -> bytes:
    """What comes back for a session that is asked for like this; nothing where it is refused."""
    try:
        with socket.create_connection((address.host, address.port), 5) as plain:
            link = plain if context is None else context.wrap_socket(plain, server_hostname=address.host)
            with link:
                link.sendall(CONNECT)
                return link.recv(4)
    except OSError:
        return b""


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Let it speak this version alone, however weak."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="is deprecated") if version < ssl.TLSVersion.TLSv1_2 else nullcontext():
        context.minimum_version = context.maximum_version = version
    return context


def client_of(version: ssl.TLSVersion, secured: SecuredFleet) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(secured.fleet.authority_file)
    context.load_cert_chain(secured.enrolled("a").file)
    return only(context, version)


class OldServer:
    """Speaks TLS 1.1 alone, and lets everybody in."""

    def __init__(self, secured: SecuredFleet, folder: Path) -> None:
        made = secured.fleet.authority.server(["127.0.0.1"], time.time())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(written(folder, made.key_pem + made.certificate_pem))
        self._context = only(context, ssl.TLSVersion.TLSv1_1)
        self.sessions = 0

    def __enter__(self) -> OldServer:  # noqa: PYI034 - Self needs Python 3.11
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._listener.getsockname()[1], tls=True)
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with plain:
                self._answer(plain)

    def _answer(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as link:
                if link.recv(100):
                    self.sessions += 1
                    link.sendall(b"\x20\x02\x00\x00")
        except OSError:
            return


@no_connection
def test_broker_speaks_neither_plainly_nor_an_old_tls(secured: SecuredFleet, tmp_path: Path) -> None:
    before, address = sessions(secured), secured.broker.address
    assert answer_to(address, None) == b""
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        assert answer_to(address, client_of(version, secured)) == b""
    assert sessions(secured) == before
    with OldServer(secured, tmp_path) as old:  # controls: this client can, and with a newer version it may
        assert answer_to(old.address, client_of(ssl.TLSVersion.TLSv1_1, secured)) == b"\x20\x02\x00\x00"
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert answer_to(address, client_of(version, secured)) == b"\x20\x02\x00\x00"
    assert sessions(secured) == before + 2


# -- whom a device talks to


@no_connection
def test_device_speaks_no_old_tls(secured: SecuredFleet, tmp_path: Path) -> None:
    with OldServer(secured, tmp_path) as old, closing(secured.link("a", address=old.address)) as link:
        with pytest.raises(BrokerUnreachableError):
            link.connect()
        assert old.sessions == 0


@no_connection
def test_device_talks_to_nobody_else_s_broker(secured: SecuredFleet, tmp_path: Path) -> None:
    """Somebody in the middle, with a certificate of an authority of their own, and with that of another device."""
    made = Authority.create(secured.fleet.settings.name, new_key(), time.time()).server(["127.0.0.1"], time.time())
    identity = secured.enrolled("b").file
    own = written(tmp_path, made.key_pem + made.certificate_pem)
    for file in (own, identity):
        with mosquitto_broker(server=(file, file)) as middle:
            link = secured.link("a", address=middle.address)
            with closing(link), pytest.raises(BrokerUnreachableError, match="is not trusted"):
                link.connect()
            assert "New client connected" not in middle._log.read_text()


# -- what is on the wire


def readable_bytes(tapped: Sequence[bytes], payloads: Sequence[bytes]) -> int:
    """How much of ``payloads`` stands in what passed, in blocks of 32 bytes."""
    whole = b"".join(tapped)
    blocks = {payload[at : at + 32] for payload in payloads for at in range(0, len(payload) - 31, 512)}
    return 32 * sum(block in whole for block in blocks if len({*block}) > 8)


def tapped_round(folder: Path, coordinator: Transport, broker: BrokerAddress, link: Link) -> int:
    """A whole round of three devices, each through a tap: how many bytes of it can be read there."""
    sent = list[bytes]()

    def work(device: str, offer: Offer, weights: bytes) -> bytes:
        update = small_update(device, offer, weights)
        sent.extend((weights, update))
        return update

    with light_models(), FaultProxy(0, taps=True) as proxy:
        gates = {name: proxy.gate(name, broker) for name in DEVICES}
        task = light_task(folder, rounds=1, round_deadline_s=60.0)

        def through_a_gate(name: str, filters: Sequence[str], will: Will) -> Transport:
            return link(name, gates[name], filters, will)

        with Served(quick(folder), task, coordinator) as served, Fleet(DEVICES, through_a_gate, work=work):
            served.wait_for_end(60)
            assert len(served.accepted) == len(DEVICES)
        assert proxy.tapped is not None
        assert sum(map(len, sent)) <= sum(map(len, proxy.tapped))
        return readable_bytes(proxy.tapped, [*sent, str(Topic("default", "a", Channel.CHUNK_DOWN)).encode()])


def test_nothing_of_a_round_can_be_read_on_the_wire(secured: SecuredFleet, tmp_path: Path, proof: Proof) -> None:
    def link(name: str, gate: BrokerAddress, filters: Sequence[str], will: Will) -> Transport:
        return secured.link(name, filters, will, address=gate)

    readable = tapped_round(tmp_path, mqtt_transport(secured.config()), secured.broker.address, link)
    proof.show("S11", "bytes of the payloads of a round that can be read on the wire", readable, at_most=0)


def test_without_tls_it_can_be_read(tmp_path: Path) -> None:
    """The control."""

    def link(name: str, gate: BrokerAddress, filters: Sequence[str], will: Will) -> Transport:
        return MqttTransport(gate, name, filters, will=will)

    with mosquitto_broker() as broker:
        coordinator: Any = MqttTransport(broker.address, "coordinator", coordinator_filters("default"))
        assert tapped_round(tmp_path, coordinator, broker.address, link) > 10_000
