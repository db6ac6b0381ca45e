"""A fleet with an authority, and mosquitto as `coordinator broker config` writes it: all of it the product's own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.config import CoordinatorConfig
from coordinator.fleet.enrolment import enrol, make_enrolment
from coordinator.fleet.folder import Fleet, FleetSettings, init_fleet
from coordinator.fleet.mosquitto import write_configuration
from coordinator.store.database import Store
from edge_sdk.protocol.identity import Enrolment
from edge_sdk.security.identity import Identity
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.base import Will
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import ConfiguredMosquitto, free_port
from tests.support.new_store import new_store


@dataclass(frozen=True)
class SecuredFleet:
    """In ``folder``: the coordinator's state, and a folder for each device that has enrolled."""

    folder: Path
    fleet: Fleet
    store: Store
    broker: ConfiguredMosquitto

    def enrolled(self, device: str, group: str | None = None) -> Identity:
        """A device with a certificate, of which all but the way over HTTP is as in life."""
        identity = Identity.of(self.folder / device)
        if not identity.file.exists():
            keep_certificate(self.store, self.fleet, identity, device, group)
        return identity

    def link(
        self,
        device: str,
        filters: Sequence[str] = (),
        will: Will | None = None,
        *,
        client_id: str | None = None,
        address: BrokerAddress | None = None,
    ) -> MqttTransport:
        """A device's, with its own certificate, not connected yet."""
        identity = self.enrolled(device)
        return MqttTransport(
            address or self.broker.address,
            client_id or device,
            filters,
            will=will,
            ca_file=identity.authority_file,
            certificate_file=identity.file,
        )

    def config(self, **settings: object) -> CoordinatorConfig:
        """Of the coordinator."""
        own = {"receive_timeout_s": 0.05, "retry_after_s": 0.2, "gather_s": 0.5}
        return CoordinatorConfig(
            state_dir=self.fleet.state_dir,
            broker=str(self.broker.address),
            ca_file=self.fleet.authority_file,
            certificate_file=self.fleet.coordinator_file,
            **own | settings,
        )


def new_fleet(state_dir: Path, port: int = 8883, **settings: object) -> Fleet:
    """On loopback."""
    broker = f"mqtts://127.0.0.1:{port}"
    return init_fleet(state_dir, FleetSettings(name="default", hosts=("127.0.0.1",), broker=broker, **settings))


def keep_certificate(store: Store, fleet: Fleet, identity: Identity, device: str, group: str | None = None) -> None:
    """Enrol without HTTP."""
    now_s = time.time()
    secret = make_enrolment(store, device=device, group=group, hours=1, now_s=now_s, who="a test")
    request = x509.load_der_x509_csr(identity.request(device)).public_bytes(Encoding.PEM).decode()
    made = enrol(store, fleet, secret, Enrolment(device=device, request=request), now_s)
    identity.authority_file.write_bytes(fleet.authority.certificate_pem)
    identity.keep(made.public_bytes(Encoding.DER), device)


@contextmanager
def secured_fleet(folder: Path, **settings: object) -> Iterator[SecuredFleet]:
    """With its broker running; ``settings`` are :class:`FleetSettings`'."""
    port = free_port()
    fleet = new_fleet(folder / "coordinator", port, **settings)
    store = new_store(fleet.state_dir)
    configuration = write_configuration(store, fleet, user="root", bind="127.0.0.1")
    broker = ConfiguredMosquitto(configuration, BrokerAddress("127.0.0.1", port, tls=True))
    try:
        yield SecuredFleet(folder, fleet, store, broker)
    finally:
        broker.kill()
        store.close()
