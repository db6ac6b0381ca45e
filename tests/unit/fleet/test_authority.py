"""What the fleet's authority signs, as OpenSSL judges it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.fleet.authority import Authority, new_key, pem_of, span_of
from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.topics import check_name, coordinator_name

NOW_S = time.time()
Judge = Callable[..., str]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("barn", new_key(), NOW_S)


def device(authority: Authority, name: str = "pi-5", **changes: float) -> x509.Certificate:
    return authority.device(new_key().public_key(), name, "canary", **{"days": 365.0, "now_s": NOW_S} | changes)


@pytest.fixture
def judged(authority: Authority, tmp_path: Path) -> Judge:
    """What `openssl verify` says of a certificate, with these options."""
    (tmp_path / "authority.pem").write_bytes(authority.certificate_pem)

    def verify(certificate: x509.Certificate, *options: str) -> str:
        (tmp_path / "one.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        command = ["openssl", "verify", "-x509_strict", "-CAfile", str(tmp_path / "authority.pem"), *options]
        done = subprocess.run([*command, str(tmp_path / "one.pem")], capture_output=True, text=True, check=False)
        return "OK" if done.returncode == 0 else done.stderr

    return verify


def test_authority_signs_nothing_but_certificates_and_their_revocation(authority: Authority, judged: Judge) -> None:
    assert judged(authority.certificate) == "OK"
    limits = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)
    usage = authority.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature


def test_device_is_a_client_and_no_server(authority: Authority, judged: Judge) -> None:
    one = device(authority)
    assert one.subject.rfc4514_string() == "CN=pi-5,OU=canary"
    assert judged(one, "-purpose", "sslclient") == "OK"
    assert "unsuitable certificate purpose" in judged(one, "-purpose", "sslserver")


def test_server_is_for_its_names_and_addresses_and_no_client(authority: Authority, judged: Judge) -> None:
    one = authority.server(["broker.example", "10.0.0.5", "::1"], NOW_S).certificate
    for named in (("-verify_hostname", "broker.example"), ("-verify_ip", "10.0.0.5"), ("-verify_ip", "::1")):
        assert judged(one, "-purpose", "sslserver", *named) == "OK"
    assert "mismatch" in judged(one, "-verify_hostname", "other.example")
    assert "unsuitable certificate purpose" in judged(one, "-purpose", "sslclient")


def test_what_a_device_signs_is_worth_nothing(authority: Authority, judged: Judge, tmp_path: Path) -> None:
    key = new_key()
    below = authority.device(key.public_key(), "pi-5", "default", days=1, now_s=NOW_S)
    forged = device(Authority(below, key))
    (tmp_path / "below.pem").write_bytes(below.public_bytes(Encoding.PEM))
    assert judged(forged, "-untrusted", str(tmp_path / "below.pem")) != "OK"
    with pytest.raises(UntrustedError, match="not of this fleet's authority"):
        authority.check(forged, NOW_S)


def test_no_device_can_have_the_name_of_the_coordinator(authority: Authority) -> None:
    name = coordinator_name("barn")
    assert authority.coordinator("barn", NOW_S).certificate.subject.rfc4514_string() == f"CN={name}"
    with pytest.raises(ConfigurationError):
        check_name(name, "device")
    with pytest.raises(ConfigurationError):
        device(authority, name)


def test_certificates_end_and_begin_when_they_should(authority: Authority) -> None:
    begins_s, ends_s = span_of(device(authority, days=30))
    assert ends_s == int(NOW_S + 30 * 86400)
    assert NOW_S - 3601 <= begins_s < NOW_S, "a broker's clock may be behind"
    begins_s, ends_s = span_of(device(authority, days=10 / 86400))
    assert ends_s - begins_s <= 12, "a short life begins not long ago"
    _, own_s = span_of(authority.coordinator("barn", NOW_S).certificate)
    assert abs(own_s - span_of(authority.certificate)[1]) <= 1
    for at_s in (NOW_S - 7200, NOW_S + 31 * 86400):
        with pytest.raises(UntrustedError, match=r"it is valid from \d{4}-.* until \d{4}-"):
            authority.check(device(authority, days=30), at_s)


def test_serial_numbers_are_drawn(authority: Authority) -> None:
    serials = {device(authority).serial_number for _ in range(20)}
    assert len(serials) == 20
    assert min(serials) > 2**100


def test_revoked_is_who_is_listed(authority: Authority, judged: Judge, tmp_path: Path) -> None:
    good, bad = device(authority), device(authority)
    made = authority.revocations([bad.serial_number], 7, NOW_S)
    (tmp_path / "list.pem").write_bytes(made.public_bytes(Encoding.PEM))
    listed = ("-crl_check", "-CRLfile", str(tmp_path / "list.pem"))
    assert judged(good, *listed) == "OK"
    assert "certificate revoked" in judged(bad, *listed)
    assert made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7


def test_every_list_is_later_than_the_one_before_and_none_is_of_the_future(authority: Authority) -> None:
    lists = [authority.revocations([], 1, NOW_S)]
    for number in range(2, 40):  # all at one instant
        lists.append(authority.revocations([], number, NOW_S, after=lists[-1].last_update_utc))
    dates = [made.last_update_utc for made in lists]
    assert all(earlier < later for earlier, later in pairwise(dates))
    assert dates[-1].timestamp() < NOW_S


@pytest.mark.parametrize("damage", ["key of another", "no key", "no certificate", "an RSA key"])
def test_authority_that_is_damaged_is_refused_in_words(authority: Authority, damage: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    certificate, key = authority.certificate_pem, authority.key_pem
    match damage:
        case "key of another":
            key = pem_of(new_key())
        case "no key":
            key = b"nothing"
        case "no certificate":
            certificate = b"nothing"
        case _:
            key = pem_of(rsa.generate_private_key(65537, 2048))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"the authority's .*: restore"):
        Authority.read(certificate, key)
