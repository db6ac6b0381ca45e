"""What a fleet's folder has: made once, kept private, and the broker's files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.fleet.folder import FleetSettings, init_fleet, known_fleet, link_of, open_fleet, say_of_fleet
from coordinator.fleet.mosquitto import access_rules, write_configuration
from coordinator.fleet.revocation import list_revoked, revoke_device
from coordinator.store.database import Store
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.topics import device_filters, parse
from edge_sdk.security.identity import Identity
from tests.support.new_store import new_store
from tests.support.secured import keep_certificate, new_fleet


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = new_store(tmp_path)
    yield opened
    opened.close()


def test_authority_is_made_once_and_settings_change(tmp_path: Path) -> None:
    first = new_fleet(tmp_path)
    again = new_fleet(tmp_path, certificate_days=5)
    assert again.authority.fingerprint == first.authority.fingerprint
    assert known_fleet(tmp_path).settings.certificate_days == 5
    with pytest.raises(ConfigurationError, match="is the state folder of fleet 'default'"):
        init_fleet(tmp_path, msgspec.structs.replace(first.settings, name="barn"))


def test_what_is_not_named_again_stays_as_it_was_said(tmp_path: Path) -> None:
    def init(*options: str) -> FleetSettings:
        typed = CliRunner().invoke(app, ["fleet", "init", "--state-dir", str(tmp_path), *options])
        assert typed.exit_code == 0, typed.output
        return known_fleet(tmp_path).settings

    first = init("--host", "fleet.example", "--broker", "mqtt://127.0.0.1:1884", "--api-port", "8443", "--open")
    assert init("--host", "fleet.example") == first
    assert init("--certificate-days", "30") == msgspec.structs.replace(first, certificate_days=30.0)
    closed = init("--no-open", "--broker", "mqtts://b.example:8884")
    assert (closed.is_open, closed.broker, closed.api_port) == (False, "mqtts://b.example:8884", 8443)
    assert init("--host", "new.example").broker == "mqtts://b.example:8884"


def test_broker_that_was_never_named_is_at_the_first_host(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--host is not given"):
        say_of_fleet(tmp_path, hosts=None, api_port=8443)
    assert not any(tmp_path.iterdir())
    assert say_of_fleet(tmp_path, hosts=("a.example",)).settings.broker == "mqtts://a.example:8883"
    again = say_of_fleet(tmp_path, hosts=("::1", "a.example"), broker=None)
    assert again.settings.broker == "mqtts://[::1]:8883"


def test_secrets_are_their_owner_s_alone(tmp_path: Path, store: Store) -> None:
    fleet = new_fleet(tmp_path)
    fleet.make_api_certificate()
    write_configuration(store, fleet, user="root")
    assert (tmp_path / "ca").stat().st_mode & 0o077 == 0
    for file in tmp_path.rglob("*"):
        if file.is_file() and b"PRIVATE KEY" in file.read_bytes():
            assert file.stat().st_mode & 0o077 == 0, file


def test_certificate_of_the_api_is_for_the_address_that_it_says_on_this_machine(tmp_path: Path) -> None:
    made = x509.load_pem_x509_certificate(new_fleet(tmp_path).make_api_certificate().read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert ip_address("127.0.0.1") in names.get_values_for_type(x509.IPAddress)


@pytest.mark.parametrize("host", ["a" * 63 + ".example", "xn--mller-kva.local", "my_host", "::1", "192.0.2.1"])
def test_whatever_host_is_taken_has_its_certificates(tmp_path: Path, store: Store, host: str) -> None:
    at = f"[{host}]" if ":" in host else host
    fleet = init_fleet(tmp_path, FleetSettings(name="a" * 52, hosts=(host,), broker=f"mqtts://{at}:8883"))
    write_configuration(store, fleet, user="root")
    for file in (fleet.make_api_certificate(), tmp_path / "broker/server.pem"):
        made = x509.load_pem_x509_certificate(file.read_bytes())
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert host in [str(name.value) for name in names]


def test_half_of_an_authority_is_completed(tmp_path: Path) -> None:
    first = new_fleet(tmp_path)
    for name in ("fleet.json", "ca/authority.pem", "ca/coordinator.pem"):
        (tmp_path / name).unlink()
    assert open_fleet(tmp_path) is None
    again = new_fleet(tmp_path)
    assert again.authority.key_pem == first.authority.key_pem


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"broker": "mqtt://127.0.0.1:1883"}, "has no TLS"),
        ({"broker": "mqtts://"}, "is not of the form"),
        ({"name": "Barn"}, "use 1 to 64 of a-z"),
        ({"broker": "mqtt://a.example:1883", "allow_plaintext": True}, "has no TLS"),
        ({"broker": "mqtt://a.example:1883", "is_open": True}, "allow plaintext explicitly"),
        ({"name": "a" * 53}, "does not fit into a certificate: use at most 52 characters"),
        ({"hosts": ("a.example", "müller.local")}, "host 'müller.local' is neither .* beginning with xn--"),
        ({"hosts": ("fleet.example:8080",)}, "host 'fleet.example:8080' is neither"),
        ({"hosts": ("https://fleet.example",)}, "is neither"),
        ({"hosts": ("a..b",)}, "is neither"),
        ({"hosts": ("a." * 127,)}, "is neither"),
        ({"broker": "mqtts://müller.local:8883"}, "host 'müller.local' is neither"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    good = {"name": "default", "hosts": ("127.0.0.1",), "broker": "mqtts://127.0.0.1:8883"}
    with pytest.raises(ConfigurationError, match=words):
        FleetSettings(**good | settings)


def test_coordinator_of_an_open_fleet_has_a_password_of_its_own(tmp_path: Path) -> None:
    settings = FleetSettings(name="barn", hosts=("127.0.0.1",), broker="mqtt://127.0.0.1:1883", is_open=True)
    fleet = init_fleet(tmp_path, settings)
    link = link_of(tmp_path, None, None, None, None)
    assert (link["user"], link["password"]) == ("coordinator@barn", fleet.coordinator_password())
    assert link["certificate_file"] is None
    assert (tmp_path / "ca/coordinator.password").stat().st_mode & 0o077 == 0
    assert init_fleet(tmp_path, settings).coordinator_password() == fleet.coordinator_password()
    own = link_of(tmp_path, None, None, None, None, user="me", password="mine")  # noqa: S106
    assert (own["user"], own["password"]) == ("me", "mine")


def test_server_is_for_every_host_that_devices_are_told() -> None:
    settings = FleetSettings(name="default", hosts=("a.example", "::1"), broker="mqtts://b.example:8883", api_port=8443)
    assert settings.served_hosts == ("a.example", "::1", "b.example")
    assert settings.api == "https://a.example:8443"


def test_coordinator_knows_its_broker_from_the_folder_and_is_told_otherwise(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--broker is not given"):
        link_of(tmp_path, None, None, None, None)
    assert link_of(tmp_path, "mqtt://127.0.0.1", None, None, None)["fleet"] == "default"
    fleet = new_fleet(tmp_path)
    known = link_of(tmp_path, None, None, None, None)
    assert (known["broker"], known["ca_file"]) == ("mqtts://127.0.0.1:8883", fleet.authority_file)
    assert link_of(tmp_path, "mqtts://other", None, None, None)["broker"] == "mqtts://other"
    with pytest.raises(ConfigurationError, match="is the state folder of fleet 'default', not 'barn'"):
        link_of(tmp_path, None, "barn", None, None)


# -- the broker's files


def test_access_rules_name_every_topic_of_a_device_and_the_announcement() -> None:
    lines = access_rules("barn").splitlines()
    patterns = [line.split(" ", 2) for line in lines if line.startswith("pattern ")]
    of_device = {(access, topic.replace("%u", "pi-5")) for _, access, topic in patterns}
    for _, topic in of_device:
        assert parse(topic).fleet == "barn"
    assert {topic for access, topic in of_device if access == "read"} == set(device_filters("barn", "pi-5"))
    assert sum("%u" in topic for _, _, topic in patterns) == len(patterns) - 1
    assert lines[0] == "user coordinator@barn"


def test_configuration_lets_nobody_in_without_a_certificate(tmp_path: Path, store: Store) -> None:
    file = write_configuration(store, new_fleet(tmp_path, port=18883), user="root", bind="127.0.0.1")
    words = dict(line.partition(" ")[::2] for line in file.read_text().splitlines() if line and line[0] != "#")
    for name in ("require_certificate", "use_identity_as_username", "use_username_as_clientid"):
        assert words[name] == "true"
    assert (words["allow_anonymous"], words["listener"]) == ("false", "18883 127.0.0.1")
    assert file.read_text().count("\nlistener ") == 1
    for name in ("cafile", "certfile", "keyfile", "crlfile", "acl_file"):
        assert Path(words[name]).is_file()


def test_user_that_is_not_there_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ConfigurationError, match="there is no user 'nobody-here'"):
        write_configuration(store, new_fleet(tmp_path), user="nobody-here")


def test_list_has_what_is_revoked_and_would_be_good(tmp_path: Path, store: Store) -> None:
    fleet = new_fleet(tmp_path, certificate_days=30)
    for device in ("a", "b"):
        keep_certificate(store, fleet, Identity.of(tmp_path / device), device)
    revoke_device(store, "a", 1.0, "ann")
    list_revoked(store, fleet)
    (tmp_path / "stray").write_bytes(b"")
    made = x509.load_pem_x509_crl((fleet.broker_dir / "revoked.pem").read_bytes())
    with store.reading() as tx:
        (known,) = tx.certificates.of_device("a")
    assert [f"{it.serial_number:x}" for it in made] == [known.serial]
    with store.reading() as tx:
        assert tx.certificates.revoked(known.expires_s + 1) == (), "an expired one is refused anyway"


def test_list_that_is_damaged_is_refused_in_words(tmp_path: Path, store: Store) -> None:
    fleet = new_fleet(tmp_path)
    fleet.broker_dir.mkdir()
    (fleet.broker_dir / "revoked.pem").write_text("nothing")
    with pytest.raises(ConfigurationError, match="is not a list of revoked certificates"):
        list_revoked(store, fleet)
