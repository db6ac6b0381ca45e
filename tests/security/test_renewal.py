"""A certificate of seconds is renewed over the wire before it ends, and the link goes on with the new one.

Coordinator, broker and the device's link are the real ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.service import Service, mqtt_transport
from coordinator.store.opening import open_store
from coordinator.store.records import CertificateRecord
from edge_sdk.agent.uplink import Uplink
from edge_sdk.agent.uplink import mqtt_transport as device_transport
from edge_sdk.config import AgentConfig
from edge_sdk.protocol.messages import Refused, Renew, decode_from_coordinator
from edge_sdk.transport.address import tls_context, why_refused
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.light_model import light_models, light_task
from tests.support.secured import SecuredFleet, new_fleet, secured_fleet
from tests.support.served import Served, quick

pytestmark = pytest.mark.mosquitto
LIVES_S = 7


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[SecuredFleet]:
    with secured_fleet(tmp_path, certificate_days=LIVES_S / 86400) as fleet:
        yield fleet


def device(secured: SecuredFleet) -> AgentConfig:
    """As it is configured once it has enrolled."""
    identity = secured.enrolled("pi-5")
    return AgentConfig(
        device="pi-5",
        broker=str(secured.broker.address),
        state_dir=secured.folder / "pi-5",
        ca_file=identity.authority_file,
        certificate_file=identity.file,
    )


def live(uplink: Uplink, link: MqttTransport, until_s: float, *, awaited: type | None = None) -> list[object]:
    """As an agent's loop does, or until what is ``awaited`` came: what came that was not the link's own business."""
    others = list[object]()
    while time.time() < until_s and not any(type(it) is awaited for it in others):
        delivery = link.receive(0.05)
        if isinstance(delivery, Incoming):
            message = decode_from_coordinator(delivery.payload)
            if not uplink.takes(message):
                others.append(message)
        elif delivery is not None:
            others.append(delivery)
        uplink.tick()
    return others


def is_taken(secured: SecuredFleet, file: Path) -> bool:
    return why_refused(secured.broker.address, tls_context(secured.fleet.authority_file, file)) == ""


def test_certificate_is_renewed_before_it_ends_and_the_link_goes_on(secured: SecuredFleet, tmp_path: Path) -> None:
    config, identity = device(secured), secured.enrolled("pi-5")
    old = tmp_path / "old.pem"
    old.write_bytes(identity.file.read_bytes())
    _, ends_s = identity.span()
    service = secured.config()
    task = light_task(tmp_path)
    with light_models(), Served(service, task, mqtt_transport(service)), closing(device_transport(config, 1)) as link:
        link.connect()
        others = live(Uplink(config, link, lambda _: None), link, ends_s - 1)
        assert not [it for it in others if isinstance(it, LinkDown)]
        assert identity.span()[1] > ends_s
        assert is_taken(secured, old), "the old one is good to its end"
        assert is_taken(secured, identity.file)
        live(Uplink(config, link, lambda _: None), link, ends_s + 0.5)
        assert not is_taken(secured, old)
        secured.broker.kill()
        secured.broker.restart()
        deliveries = live(Uplink(config, link, lambda _: None), link, time.time() + 6, awaited=LinkUp)
        assert LinkUp() in deliveries, "it came again with the new one"
    serials = {int(known.serial, 16) for known in certificates(secured)}
    assert x509.load_pem_x509_certificate(identity.file.read_bytes()).serial_number in serials
    assert len(serials) >= 2


def certificates(secured: SecuredFleet) -> tuple[CertificateRecord, ...]:
    with secured.store.reading() as tx:
        return tx.certificates.of_device("pi-5")


@pytest.mark.long
def test_link_without_renewal_does_not_come_again(secured: SecuredFleet) -> None:
    """The control."""
    config = device(secured)
    _, ends_s = secured.enrolled("pi-5").span()
    with closing(device_transport(config, 1)) as link:
        link.connect()
        while time.time() < ends_s + 0.5:
            link.receive(0.1)
        secured.broker.kill()
        secured.broker.restart()
        give_up_s = time.monotonic() + 6
        while time.monotonic() < give_up_s:
            assert not isinstance(link.receive(0.2), LinkUp)


def test_coordinator_without_an_authority_says_so(tmp_path: Path) -> None:
    with closing(open_store(tmp_path)) as store:
        service = Service(quick(tmp_path), store, MemoryTransport(MemoryHub(), ()))
        answer = service._answer_to_renew("pi-5", Renew(certificate=b"", request=b"", signature=b""))
    assert answer == Refused(reason="this fleet has no authority")


@pytest.mark.parametrize("lost", ["ca/authority.key", "ca/authority.pem"])
def test_coordinator_whose_authority_was_taken_away_refuses_and_goes_on(tmp_path: Path, lost: str) -> None:
    new_fleet(tmp_path)
    (tmp_path / lost).unlink()
    with closing(open_store(tmp_path)) as store:
        service = Service(quick(tmp_path), store, MemoryTransport(MemoryHub(), ()))
        answer = service._answer_to_renew("pi-5", Renew(certificate=b"", request=b"", signature=b""))
    assert answer == Refused(reason="the fleet's CA cannot be read now")


def test_renewal_that_does_not_hold_is_refused_in_words(secured: SecuredFleet) -> None:
    secured.enrolled("pi-5")
    service = Service(secured.config(), secured.store, MemoryTransport(MemoryHub(), ()))
    answer = service._answer_to_renew("pi-6", secured.enrolled("pi-5").renewal("pi-5"))
    assert answer == Refused(reason="the certificate belongs to another device")
