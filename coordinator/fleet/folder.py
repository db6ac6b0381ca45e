"""The files of a fleet with an authority, in the coordinator's state folder.

    fleet.json           name, addresses, how long certificates last: FleetSettings
    ca/authority.key     secret: whoever has it is the fleet
    ca/authority.pem     its certificate, which everybody may have
    ca/coordinator.pem   secret: the coordinator's own key and certificate
    ca/coordinator.password  secret: its password at the broker of an open fleet
    ca/api.pem           secret: the API's, made anew at each start
    broker/              what the broker reads, see :mod:`coordinator.fleet.mosquitto`

A fleet without these files trusts every client that its broker lets in. In an open fleet the authority signs
certificates for the broker and the API only, and devices have passwords: :mod:`coordinator.fleet.passwords`.
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

from coordinator.fleet.authority import MAX_COMMON_NAME, Authority, check_host, new_key, pem_of, read_key
from coordinator.fleet.secret import new_secret
from edge_sdk.disk import create_durably, disk_errors, write_durably
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.topics import check_name, coordinator_name
from edge_sdk.security.secrets import read_secret
from edge_sdk.transport.address import BrokerAddress, refuse_plaintext

SETTINGS_FILE = "fleet.json"
KEY_FILE = "ca/authority.key"
CERTIFICATE_FILE = "ca/authority.pem"
COORDINATOR_FILE = "ca/coordinator.pem"
COORDINATOR_PASSWORD_FILE = "ca/coordinator.password"  # noqa: S105 - a name
FLEET_FILES = frozenset({SETTINGS_FILE, KEY_FILE, CERTIFICATE_FILE, COORDINATOR_FILE, COORDINATOR_PASSWORD_FILE})
"""The files that, with the store, are the fleet: a backup needs them."""
_LOCK = "ca/lock"
_PREFIX = "raffm_coordinator_"


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator's settings for a fleet with an authority.

    ``hosts`` are the names and addresses that servers' certificates are for; devices are given the first.
    ``broker`` is the broker's address as devices reach it, and ``api_port`` the port at which they enrol. A device's
    certificate is valid for ``certificate_days``. ``broker_dir`` is the folder that the broker reads, and ``reload`` a
    command that makes it read the folder again; without one, the process in its PID file gets SIGHUP. If the fleet
    ``is_open``, devices log in with tokens, and ``allow_plaintext`` lets other machines do so without TLS.
    Raises ``ConfigurationError`` for a malformed name or address, and for an address without the TLS that it needs.
    """

    name: str
    hosts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    broker: str
    api_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8080
    certificate_days: Annotated[float, msgspec.Meta(gt=0, le=3650)] = 365.0
    broker_dir: str | None = None
    reload: str | None = None
    is_open: bool = False
    allow_plaintext: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "fleet")
        if len(coordinator_name(self.name)) > MAX_COMMON_NAME:
            most = MAX_COMMON_NAME - len(coordinator_name(""))
            raise ConfigurationError(
                f"fleet {self.name!r} does not fit into a certificate: use at most {most} characters"
            )
        if self.is_open:
            refuse_plaintext(self.address, allow_plaintext=self.allow_plaintext)
        elif not self.address.tls:
            raise ConfigurationError(f"broker {self.broker} has no TLS, which certificates need: use mqtts://")
        for host in self.served_hosts:
            check_host(host)

    @property
    def address(self) -> BrokerAddress:
        """The broker's address, parsed."""
        return BrokerAddress.parse(self.broker)

    @property
    def api(self) -> str:
        """The URL at which devices enrol."""
        return f"https://{_bracketed(self.hosts[0])}:{self.api_port}"

    @property
    def served_hosts(self) -> tuple[str, ...]:
        """All names and addresses that a server's certificate is for: ``hosts``, and the broker's."""
        return tuple(dict.fromkeys((*self.hosts, self.address.host)))


_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_settings = msgspec.json.Decoder(FleetSettings)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet with an authority: its state folder, its settings, and its keys."""

    state_dir: Path
    settings: FleetSettings
    authority: Authority

    @property
    def authority_file(self) -> Path:
        """The certificate that the coordinator's own connections trust."""
        return self.state_dir / CERTIFICATE_FILE

    @property
    def coordinator_file(self) -> Path:
        """The key and the certificate with which the coordinator logs in at its broker."""
        return self.state_dir / COORDINATOR_FILE

    def coordinator_password(self) -> str:
        """The coordinator's password at the broker of an open fleet; ``ConfigurationError`` if the file is missing."""
        return read_secret(self.state_dir / COORDINATOR_PASSWORD_FILE)

    @property
    def broker_dir(self) -> Path:
        """The folder that the broker reads."""
        return self.state_dir / (self.settings.broker_dir or "broker")

    def make_api_certificate(self) -> Path:
        """A file with a new key and certificate for the API, which is valid for calls from this machine too."""
        path = self.state_dir / "ca/api.pem"
        hosts = dict.fromkeys((*self.settings.served_hosts, *_LOOPBACK))
        signed = self.authority.server(tuple(hosts), time.time())
        with disk_errors(path):
            write_durably(path, signed.key_pem + signed.certificate_pem, secret=True)
        return path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this is open, no other process writes the files that are derived from the store."""
        path = self.state_dir / _LOCK
        with disk_errors(path), path.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def init_fleet(state_dir: Path, settings: FleetSettings) -> Fleet:
    """Make an authority if there is none, and write ``settings`` in place of any earlier ones.

    Raises ``ConfigurationError`` if the authority is damaged or belongs to another fleet, and ``StorageError``.
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
        if settings.is_open:
            create_durably(state_dir / COORDINATOR_PASSWORD_FILE, new_secret(_PREFIX).encode())
        write_durably(state_dir / SETTINGS_FILE, msgspec.json.format(msgspec.json.encode(settings)))
    return known_fleet(state_dir)


def say_of_fleet(state_dir: Path, *, hosts: tuple[str, ...] | None, **said: object) -> Fleet:
    """As :func:`init_fleet`, with what is ``said`` under the names of :class:`FleetSettings` and is not ``None``.

    The rest stays as it was said before, at first as usual. Where no broker was ever named, it is at port 8883 of the
    first host. ``ConfigurationError`` too where no host was ever named.
    """
    known = open_fleet(state_dir)
    if known is not None:
        settings = known.settings
    elif hosts:
        settings = FleetSettings(name="default", hosts=hosts, broker=_usual_broker(hosts))
    else:
        raise ConfigurationError("--host is not given: give the name or address at which devices reach this machine")
    changes = {name: value for name, value in said.items() if value is not None}
    if hosts:
        is_usual = settings.broker == _usual_broker(settings.hosts)
        changes = {"hosts": hosts, **({"broker": _usual_broker(hosts)} if is_usual else {}), **changes}
    return init_fleet(state_dir, msgspec.structs.replace(settings, **changes))


def _usual_broker(hosts: tuple[str, ...]) -> str:
    return f"mqtts://{_bracketed(hosts[0])}:8883"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def open_fleet(state_dir: Path) -> Fleet | None:
    """The fleet of a state folder; ``None`` without an authority. Raises ``ConfigurationError``, ``StorageError``."""
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
    """As :func:`open_fleet`, but a fleet without an authority is a ``ConfigurationError``."""
    fleet = open_fleet(state_dir)
    if fleet is None:
        raise ConfigurationError(f"the fleet of {state_dir} has no authority: make one by `coordinator fleet init`")
    return fleet


def fleet_name(state_dir: Path, said: str | None) -> str:
    """The name of the fleet of a state folder; without an authority it is as ``said``, or ``default``.

    Raises ``ConfigurationError`` for a malformed name, or if the folder is that of another fleet than ``said``.
    """
    known = open_fleet(state_dir)
    name = known.settings.name if known is not None else check_name(said or "default", "fleet")
    if said not in {None, name}:
        raise ConfigurationError(f"{state_dir} is the state folder of fleet {name!r}, not {said!r}")
    return name


def link_of(
    state_dir: Path,
    broker: str | None,
    fleet: str | None,
    ca_file: Path | None,
    certificate_file: Path | None,
    *,
    user: str | None = None,
    password: str | None = None,
    allow_plaintext: bool = False,
) -> Link:
    """How a coordinator reaches its broker: by the arguments and, where they are ``None``, by the fleet's settings.

    Raises ``ConfigurationError`` if no broker is named, or if ``fleet`` is not the one that the folder belongs to.
    """
    known, link = open_fleet(state_dir), Link(fleet=fleet_name(state_dir, fleet))
    link |= Link(ca_file=ca_file, certificate_file=certificate_file)
    link |= Link(user=user, password=password, allow_plaintext=allow_plaintext)
    if known is None:
        if broker is None:
            raise ConfigurationError("--broker is not given: give one, or set up a fleet by `coordinator fleet init`")
        return link | Link(broker=broker)
    settings = known.settings
    link |= Link(broker=broker or settings.broker, ca_file=ca_file or known.authority_file)
    if not settings.is_open:
        return link | Link(certificate_file=certificate_file or known.coordinator_file)
    link["allow_plaintext"] = allow_plaintext or settings.allow_plaintext
    return link if user else link | Link(user=coordinator_name(settings.name), password=known.coordinator_password())


class Link(TypedDict, total=False):
    """The settings of :class:`coordinator.config.CoordinatorConfig` that say how to reach the broker."""

    broker: str
    fleet: str
    ca_file: Path | None
    certificate_file: Path | None
    user: str | None
    password: str | None
    allow_plaintext: bool


def keep_settings(fleet: Fleet, **changes: object) -> Fleet:
    """Change some of the fleet's settings, durably; the changed fleet."""
    return init_fleet(fleet.state_dir, msgspec.structs.replace(fleet.settings, **changes))


def _authority(state_dir: Path) -> Authority:
    return Authority.read((state_dir / CERTIFICATE_FILE).read_bytes(), (state_dir / KEY_FILE).read_bytes())
