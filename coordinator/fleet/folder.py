"""Where a fleet's authority lies, and what its coordinator tells brokers and devices of itself.

    fleet.json           name, addresses, how long certificates last: FleetSettings
    ca/authority.key     secret: whoever has it is the fleet
    ca/authority.pem     its certificate, which everybody may have
    ca/coordinator.pem   secret: the coordinator's own key and certificate
    ca/api.pem           secret: the API's, made anew at each start
    broker/              what the broker reads, see :mod:`coordinator.fleet.mosquitto`

All of it in the coordinator's state folder. A fleet without it is open: it trusts whomever its broker lets in.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec

from coordinator.fleet.authority import Authority, new_key, pem_of, read_key
from edge_sdk.disk import create_durably, disk_errors, write_durably
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.topics import check_name
from edge_sdk.transport.address import BrokerAddress

SETTINGS_FILE = "fleet.json"
KEY_FILE = "ca/authority.key"
CERTIFICATE_FILE = "ca/authority.pem"
COORDINATOR_FILE = "ca/coordinator.pem"
FLEET_FILES = frozenset({SETTINGS_FILE, KEY_FILE, CERTIFICATE_FILE, COORDINATOR_FILE})
"""All that makes a fleet what it is, beside its store."""
_LOCK = "ca/lock"


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator has said of a fleet with an authority.

    ``hosts`` are the names and addresses that servers' certificates are for; devices are told the first.
    ``broker`` is its address for devices, ``api_port`` where they enrol. A device's certificate is good for
    ``certificate_days``. ``broker_dir`` has what the broker reads, and ``reload`` is a command that has it read that
    again; without one, the process in its PID file is told.
    ``ConfigurationError`` where a value cannot be right.
    """

    name: str
    hosts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    broker: str
    api_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8080
    certificate_days: Annotated[float, msgspec.Meta(gt=0, le=3650)] = 365.0
    broker_dir: str | None = None
    reload: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "fleet")
        if not BrokerAddress.parse(self.broker).tls:
            raise ConfigurationError(f"broker {self.broker} has no TLS, which certificates need: use mqtts://")

    @property
    def api(self) -> str:
        """Where devices enrol."""
        host = f"[{self.hosts[0]}]" if ":" in self.hosts[0] else self.hosts[0]
        return f"https://{host}:{self.api_port}"

    @property
    def served_hosts(self) -> tuple[str, ...]:
        """All that a server's certificate is for."""
        return tuple(dict.fromkeys((*self.hosts, BrokerAddress.parse(self.broker).host)))


_settings = msgspec.json.Decoder(FleetSettings)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet with an authority."""

    state_dir: Path
    settings: FleetSettings
    authority: Authority

    @property
    def authority_file(self) -> Path:
        """What the coordinator's own connections trust."""
        return self.state_dir / CERTIFICATE_FILE

    @property
    def coordinator_file(self) -> Path:
        """What the coordinator shows its broker."""
        return self.state_dir / COORDINATOR_FILE

    @property
    def broker_dir(self) -> Path:
        """What the broker reads."""
        return self.state_dir / (self.settings.broker_dir or "broker")

    def make_api_certificate(self) -> Path:
        """A file with a new certificate for the API, and its key."""
        path = self.state_dir / "ca/api.pem"
        signed = self.authority.server(self.settings.served_hosts, time.time())
        with disk_errors(path):
            write_durably(path, signed.key_pem + signed.certificate_pem, secret=True)
        return path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process writes what follows from the store meanwhile."""
        path = self.state_dir / _LOCK
        with disk_errors(path), path.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def init_fleet(state_dir: Path, settings: FleetSettings) -> Fleet:
    """Make an authority where there is none, and keep ``settings`` in place of any others.

    Raises ``ConfigurationError`` where the authority is another fleet's, or damaged, and ``StorageError``.
    """
    known = open_fleet(state_dir)
    if known is not None and known.settings.name != settings.name:
        raise ConfigurationError(
            f"{state_dir} is the state folder of fleet {known.settings.name!r}, whose devices know it by that name: "
            f"use another folder for {settings.name!r}"
        )
    with disk_errors(state_dir):
        (state_dir / "ca").mkdir(mode=0o700, parents=True, exist_ok=True)
        create_durably(state_dir / KEY_FILE, pem_of(new_key()))
        key = read_key((state_dir / KEY_FILE).read_bytes())
        create_durably(state_dir / CERTIFICATE_FILE, Authority.create(settings.name, key, time.time()).certificate_pem)
        own = _authority(state_dir).coordinator(settings.name, time.time())
        create_durably(state_dir / COORDINATOR_FILE, own.key_pem + own.certificate_pem)
        write_durably(state_dir / SETTINGS_FILE, msgspec.json.format(msgspec.json.encode(settings)))
    return known_fleet(state_dir)


def open_fleet(state_dir: Path) -> Fleet | None:
    """The fleet of a state folder; ``None`` of one that is open. Raises ``ConfigurationError``, ``StorageError``."""
    path = state_dir / SETTINGS_FILE
    if not path.exists():
        return None
    with disk_errors(path):
        try:
            settings = _settings.decode(path.read_bytes())
        except msgspec.DecodeError as error:
            raise ConfigurationError(f"{path}: {error}") from error
        return Fleet(state_dir, settings, _authority(state_dir))


def known_fleet(state_dir: Path) -> Fleet:
    """As :func:`open_fleet`, and ``ConfigurationError`` where the fleet is open."""
    fleet = open_fleet(state_dir)
    if fleet is None:
        raise ConfigurationError(f"the fleet of {state_dir} has no authority: make one by `coordinator fleet init`")
    return fleet


def link_of(
    state_dir: Path, broker: str | None, fleet: str | None, ca_file: Path | None, certificate_file: Path | None
) -> _Link:
    """How a coordinator reaches its broker: as it is told, and as :func:`init_fleet` has said for the rest.

    Raises ``ConfigurationError`` where nobody has named a broker, or another fleet than the folder's.
    """
    known = open_fleet(state_dir)
    if known is None:
        if broker is None:
            raise ConfigurationError("--broker is not given: name one, or make a fleet by `coordinator fleet init`")
        return _Link(broker=broker, fleet=fleet or "default", ca_file=ca_file, certificate_file=certificate_file)
    if fleet not in {None, known.settings.name}:
        raise ConfigurationError(f"{state_dir} is the state folder of fleet {known.settings.name!r}, not {fleet!r}")
    return _Link(
        broker=broker or known.settings.broker,
        fleet=known.settings.name,
        ca_file=ca_file or known.authority_file,
        certificate_file=certificate_file or known.coordinator_file,
    )


class _Link(TypedDict):
    broker: str
    fleet: str
    ca_file: Path | None
    certificate_file: Path | None


def keep_settings(fleet: Fleet, **changes: object) -> Fleet:
    """The fleet with other settings, which stay."""
    return init_fleet(fleet.state_dir, msgspec.structs.replace(fleet.settings, **changes))


def _authority(state_dir: Path) -> Authority:
    return Authority.read((state_dir / CERTIFICATE_FILE).read_bytes(), (state_dir / KEY_FILE).read_bytes())
