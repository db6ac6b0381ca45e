"""Who gets a certificate, for which token and which request; and who gets the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from coordinator.fleet.authority import Authority, new_key
from coordinator.fleet.enrolment import enrol, enrolment_line, make_enrolment, renew, withdraw_enrolment
from coordinator.fleet.folder import Fleet
from coordinator.fleet.revocation import revoke_device
from coordinator.store.database import Store
from edge_sdk.errors import ConfigurationError, MalformedMessageError, ProtocolError, UntrustedError
from edge_sdk.protocol.identity import Enrolment, signed_for_renewal
from edge_sdk.protocol.messages import Renew
from tests.support.new_store import new_store
from tests.support.secured import new_fleet

NOW_S = time.time()
SHA256 = hashes.SHA256()
DAY_S = 86400.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return new_fleet(tmp_path_factory.mktemp("fleet"), certificate_days=30)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = new_store(tmp_path)
    yield opened
    opened.close()


def token(store: Store, device: str | None = None, group: str | None = None, hours: float = 24) -> str:
    return make_enrolment(store, device=device, group=group, hours=hours, now_s=NOW_S, who="ann")


def request(
    key: Any, *names: str, extensions: tuple[x509.ExtensionType, ...] = (), hash_: Any = SHA256
) -> x509.CertificateSigningRequest:
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n) for n in names])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hash_)


def asked(device: str, key: Any = None, name: str | None = None) -> Enrolment:
    made = request(key or new_key(), name or device).public_bytes(Encoding.PEM).decode()
    return Enrolment(device=device, request=made)


def given(store: Store, device: str) -> int:
    with store.reading() as tx:
        return len(tx.certificates.of_device(device))


# -- tokens


def test_token_gives_a_certificate_once_and_puts_the_device_into_its_group(store: Store, fleet: Fleet) -> None:
    secret = token(store, group="canary")
    made = enrol(store, fleet, secret, asked("pi-5"), NOW_S)
    assert made.subject.rfc4514_string() == "CN=pi-5,OU=canary"
    with store.reading() as tx:
        known, record, used = tx.devices.get("pi-5"), tx.certificates.of_device("pi-5")[0], tx.enrolments.all()[0]
        entries = [(it.who, it.action) for it in tx.audit.newest(10)]
    assert known is not None
    assert (known.group, known.has_said_hello, known.revoked_s) == ("canary", False, None)
    assert int(record.serial, 16) == made.serial_number
    assert (used.used_by, used.used_s) == ("pi-5", NOW_S)
    assert entries == [("pi-5, enrolling", "enrol device"), ("ann", "create enrolment token")]


@pytest.mark.parametrize(
    ("device", "secret", "later_s", "words"),
    [
        pytest.param("pi-5", "raffm_enrol_" + "x" * 43, 0.0, "unknown", id="guessed"),
        pytest.param("pi-5", "", 0.0, "unknown", id="empty"),
        pytest.param("pi-5", "x" * 100_000, 0.0, "unknown", id="long"),
        pytest.param("pi-5", None, DAY_S, "expired", id="expired"),
        pytest.param("pi-6", None, 0.0, "for another device", id="another's"),
    ],
)
def test_token_that_is_not_good_gives_nothing(
    store: Store, fleet: Fleet, device: str, secret: str | None, later_s: float, words: str
) -> None:
    real = token(store, "pi-5")
    with pytest.raises(UntrustedError, match=words) as caught:
        enrol(store, fleet, real if secret is None else secret, asked(device), NOW_S + later_s)
    assert "\n" not in str(caught.value)
    assert real not in str(caught.value)
    assert given(store, device) == 0
    assert enrol(store, fleet, real, asked("pi-5"), NOW_S), "and it is good still"


def test_token_that_was_used_gives_the_same_again_and_nothing_else(store: Store, fleet: Fleet) -> None:
    key, secret = new_key(), token(store)
    first = enrol(store, fleet, secret, asked("pi-5", key), NOW_S)
    assert enrol(store, fleet, secret, asked("pi-5", key), NOW_S + 60) == first, "the answer may have been lost"
    for other in (asked("pi-5"), asked("pi-6"), asked("pi-6", key)):
        with pytest.raises(UntrustedError, match="was used by pi-5"):
            enrol(store, fleet, secret, other, NOW_S)
    assert (given(store, "pi-5"), given(store, "pi-6")) == (1, 0)
    with pytest.raises(UntrustedError, match="expired"):
        enrol(store, fleet, secret, asked("pi-5", key), NOW_S + DAY_S)


def test_token_used_by_many_at_once_gives_one_certificate(store: Store, fleet: Fleet) -> None:
    secret, outcomes = token(store), list[str]()

    def try_it(number: int) -> None:
        try:
            enrol(store, fleet, secret, asked(f"pi-{number}"), NOW_S)
            outcomes.append("given")
        except UntrustedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["given"] + ["refused"] * 7
    assert sum(given(store, f"pi-{number}") for number in range(8)) == 1


def test_name_that_is_taken_needs_a_token_that_names_it(store: Store, fleet: Fleet) -> None:
    """Else whoever installs one device could become any other."""
    old = enrol(store, fleet, token(store, group="canary"), asked("pi-5"), NOW_S)
    with pytest.raises(UntrustedError, match="needs a token made with --device"):
        enrol(store, fleet, token(store), asked("pi-5"), NOW_S)
    new = enrol(store, fleet, token(store, "pi-5"), asked("pi-5"), NOW_S)
    assert new.subject.rfc4514_string() == "CN=pi-5,OU=canary", "it stays where it was"
    with store.reading() as tx:
        assert tx.certificates.revoked(NOW_S) == (f"{old.serial_number:x}",), "its old key is somewhere else"


def test_revoked_device_comes_back_with_a_new_token_alone(store: Store, fleet: Fleet) -> None:
    key, unused, secret = new_key(), token(store, "pi-5"), token(store, "pi-5")
    enrol(store, fleet, secret, asked("pi-5", key), NOW_S)
    revoke_device(store, "pi-5", NOW_S, "ann")
    for used in (secret, unused, token(store)):
        with pytest.raises(UntrustedError):
            enrol(store, fleet, used, asked("pi-5", key), NOW_S)
    enrol(store, fleet, token(store, "pi-5"), asked("pi-5"), NOW_S)
    with store.reading() as tx:
        known = tx.devices.get("pi-5")
    assert known is not None
    assert known.revoked_s is None


def test_token_that_is_withdrawn_lets_nobody_in(store: Store, fleet: Fleet) -> None:
    secret = token(store)
    with store.reading() as tx:
        (known,) = tx.enrolments.all()
    withdraw_enrolment(store, known.id, NOW_S, "ann")
    with pytest.raises(UntrustedError, match="unknown"):
        enrol(store, fleet, secret, asked("pi-5"), NOW_S)
    with pytest.raises(ConfigurationError, match="no unused token"):
        withdraw_enrolment(store, known.id, NOW_S, "ann")


def test_no_secret_is_kept_or_told(store: Store, fleet: Fleet, tmp_path: Path) -> None:
    secret = token(store, "pi-5")
    assert secret.removeprefix("raffm_enrol_").isascii()
    assert len(secret) >= 12 + 43, "256 bits"
    enrol(store, fleet, secret, asked("pi-5"), NOW_S)
    store.close()
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes(), file
    line = enrolment_line(fleet, "pi-5")
    assert secret not in line
    assert fleet.authority.fingerprint in line


@pytest.mark.parametrize("name", [{"device": "Pi 5"}, {"group": "a/b"}, {"device": "coordinator@default"}])
def test_token_for_what_is_no_name_is_refused(store: Store, name: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="use 1 to 64 of a-z"):
        token(store, **name)


# -- requests


KEYS: dict[str, Callable[[], Any]] = {
    "RSA 1024": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505 - that is the point
    "RSA 3072": lambda: rsa.generate_private_key(65537, 3072),
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_other_kinds_are_refused(store: Store, fleet: Fleet, kind: str) -> None:
    with pytest.raises(MalformedMessageError, match="EC P-256"):
        enrol(store, fleet, token(store), asked("pi-5", KEYS[kind]()), NOW_S)
    assert given(store, "pi-5") == 0


def pem(made: x509.CertificateSigningRequest) -> str:
    return made.public_bytes(Encoding.PEM).decode()


def tampered() -> str:
    der = bytearray(request(new_key(), "pi-5").public_bytes(Encoding.DER))
    der[-1] ^= 1
    return pem(x509.load_der_x509_csr(bytes(der)))


def a_certificate() -> str:
    return Authority.create("x", new_key(), NOW_S).certificate_pem.decode()


REQUESTS: dict[str, Callable[[], str]] = {
    "for another": lambda: pem(request(new_key(), "pi-6")),
    "for the coordinator": lambda: pem(request(new_key(), "coordinator@default")),
    "for two": lambda: pem(request(new_key(), "pi-5", "pi-6")),
    "for nobody": lambda: pem(request(new_key())),
    "for a wildcard": lambda: pem(request(new_key(), "+")),
    "not signed by its key": tampered,
    "Ed25519": lambda: pem(request(ed25519.Ed25519PrivateKey.generate(), "pi-5", hash_=None)),
    "garbage": lambda: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
    "empty": str,
    "a certificate": a_certificate,
}


@pytest.mark.parametrize("what", REQUESTS)
def test_request_that_is_wrong_costs_no_token(store: Store, fleet: Fleet, what: str) -> None:
    secret = token(store, "pi-5")
    with pytest.raises(MalformedMessageError) as caught:
        enrol(store, fleet, secret, Enrolment(device="pi-5", request=REQUESTS[what]()), NOW_S)
    assert "\n" not in str(caught.value)
    assert given(store, "pi-5") == 0
    assert enrol(store, fleet, secret, asked("pi-5"), NOW_S)


def test_nothing_but_the_key_is_taken_from_a_request(store: Store, fleet: Fleet) -> None:
    wishes = (
        x509.BasicConstraints(ca=True, path_length=3),
        x509.SubjectAlternativeName([x509.DNSName("broker.example")]),
        x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    wanted = Enrolment(device="pi-5", request=pem(request(new_key(), "pi-5", extensions=wishes)))
    made = enrol(store, fleet, token(store), wanted, NOW_S)
    found = {type(extension.value): extension.value for extension in made.extensions}
    assert not found[x509.BasicConstraints].ca
    assert list(found[x509.ExtendedKeyUsage]) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert x509.SubjectAlternativeName not in found


# -- renewal


class Renewing:
    """A device ``pi-5``, enrolled now with a certificate of thirty days."""

    def __init__(self, store: Store, fleet: Fleet) -> None:
        self.store, self.fleet, self.key = store, fleet, new_key()
        self.certificate = enrol(store, fleet, token(store, "pi-5"), asked("pi-5", self.key), NOW_S)

    def message(self, new: Any = None, **changes: Any) -> Renew:
        wanted = request(new or new_key(), changes.get("name", "pi-5")).public_bytes(Encoding.DER)
        signature = changes.get("signer", self.key).sign(signed_for_renewal(wanted), ECDSA(hashes.SHA256()))
        shown = changes.get("certificate", self.certificate).public_bytes(Encoding.DER)
        return Renew(certificate=shown, request=wanted, signature=signature)

    def renewed(self, message: Renew, days: float = 25, device: str = "pi-5") -> x509.Certificate:
        return renew(self.store, self.fleet, device, message, NOW_S + days * DAY_S)


@pytest.fixture
def renewing(store: Store, fleet: Fleet) -> Renewing:
    return Renewing(store, fleet)


def test_old_certificate_gets_a_new_one_with_a_new_key_and_stays_good(renewing: Renewing) -> None:
    key = new_key()
    with renewing.store.transaction() as tx:
        tx.devices.set_group("pi-5", "canary")
    made = renewing.renewed(renewing.message(key))
    assert made.public_key() == key.public_key()
    assert made.subject.rfc4514_string() == "CN=pi-5,OU=canary", "where it is now"
    assert made.not_valid_after_utc > datetime.fromtimestamp(NOW_S, timezone.utc) + timedelta(days=54)
    with renewing.store.reading() as tx:
        assert tx.certificates.revoked(NOW_S) == ()
    assert renewing.renewed(renewing.message(key)) == made, "the answer may have been lost"
    assert given(renewing.store, "pi-5") == 2


def test_renewal_is_not_for_certificates_that_have_just_begun(renewing: Renewing) -> None:
    with pytest.raises(UntrustedError, match=r"is renewed from .* on, not before"):
        renewing.renewed(renewing.message(), days=10)


def test_device_has_no_more_certificates_than_a_few(renewing: Renewing) -> None:
    for _ in range(7):
        renewing.renewed(renewing.message())
    with pytest.raises(UntrustedError, match="has 8 valid certificates"):
        renewing.renewed(renewing.message())


def test_nobody_renews_what_is_another_s(renewing: Renewing) -> None:
    stranger = new_key()
    foreign = Authority.create("default", new_key(), NOW_S)
    forged = foreign.device(stranger.public_key(), "pi-5", "default", days=30, now_s=NOW_S)
    attempts = {
        "not signed by the certificate's key": (renewing.message(signer=stranger), "pi-5"),
        "not of this fleet's authority": (renewing.message(certificate=forged, signer=stranger), "pi-5"),
        "the certificate belongs to another device": (renewing.message(), "pi-6"),
        "is for 'pi-6', not 'pi-5'": (renewing.message(name="pi-6"), "pi-5"),
    }
    for words, (message, device) in attempts.items():
        with pytest.raises(ProtocolError, match=words):
            renewing.renewed(message, device=device)
    swapped = renewing.message(stranger)
    swapped = Renew(certificate=swapped.certificate, request=renewing.message().request, signature=swapped.signature)
    with pytest.raises(UntrustedError, match="not signed"):
        renewing.renewed(swapped)
    assert given(renewing.store, "pi-5") == 1


def test_neither_an_expired_nor_a_revoked_certificate_is_renewed(renewing: Renewing) -> None:
    with pytest.raises(UntrustedError, match="not good now"):
        renewing.renewed(renewing.message(), days=31)
    revoke_device(renewing.store, "pi-5", NOW_S, "ann")
    with pytest.raises(UntrustedError, match="is revoked"):
        renewing.renewed(renewing.message())


@pytest.mark.parametrize("field", ["certificate", "request", "signature"])
def test_renewal_of_garbage_is_refused(renewing: Renewing, field: str) -> None:
    good = renewing.message()
    parts = {name: getattr(good, name) for name in ("certificate", "request", "signature")} | {field: b"\x30\x03abc"}
    with pytest.raises(ProtocolError):
        renewing.renewed(Renew(**parts))
