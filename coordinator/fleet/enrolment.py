"""How a device gets its certificates: the first in exchange for a one-time token, each later one for the one before.

An enrolment is checked in this order, so that a stranger costs no more than one look-up: first the token, then the
request and the signature of its key; then the token is checked again and the certificate recorded, in one transaction.
"""

from __future__ import annotations

from datetime import datetime
from typing import NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from coordinator.fleet.authority import span_of
from coordinator.fleet.folder import Fleet
from coordinator.fleet.secret import digest_of, new_secret
from coordinator.store.database import Store, Transaction
from coordinator.store.records import CertificateRecord, EnrolmentRecord
from coordinator.store.states import DEFAULT_GROUP
from edge_sdk.errors import ConfigurationError, MalformedMessageError, UntrustedError
from edge_sdk.protocol.identity import Enrolment, signed_for_renewal
from edge_sdk.protocol.messages import Renew
from edge_sdk.protocol.topics import check_name

_PREFIX = "raffm_enrol_"
_HOUR_S = 3600.0
_MAX_SECRET = 128
_MAX_VALID = 8
_RENEWED_FROM = 0.5


# -- tokens


def make_enrolment(store: Store, *, device: str | None, group: str | None, hours: float, now_s: float, who: str) -> str:
    """Make a one-time token, only for ``device`` if that is named; it cannot be read again later.

    The device that enrols with it is put into ``group``; if none is named, a new device goes into the default group.
    Raises ``ConfigurationError`` for a malformed name.
    """
    for name, what in ((device, "device"), (group, "group")):
        if name is not None:
            check_name(name, what)
    secret = new_secret(_PREFIX)
    record = EnrolmentRecord(digest_of(secret), device, group, now_s, now_s + hours * _HOUR_S)
    with store.transaction() as tx:
        tx.enrolments.add(record)
        tx.audit.note(now_s, who, "create enrolment token", _in_words(record))
    return secret


def enrolment_line(fleet: Fleet, device: str | None) -> str:
    """The command to type on a device, in a folder where the file ``token`` contains the token."""
    name, settings = device or "NAME", fleet.settings
    return (
        f"edge-agent enroll --coordinator {settings.api} --device {name} --token-file token "
        f"--ca-fingerprint {fleet.authority.fingerprint}"
    )


def withdraw_enrolment(store: Store, token: str, now_s: float, who: str) -> None:
    """Withdraw an unused token; ``token`` is its id, ``ConfigurationError`` if there is no such token."""
    with store.transaction() as tx:
        known = next((it for it in tx.enrolments.all() if it.id == token and it.used_s is None), None)
        if known is None:
            raise ConfigurationError(f"no unused token has the id {token!r}; `coordinator device tokens` shows them")
        tx.enrolments.remove(known.digest)
        tx.audit.note(now_s, who, "withdraw enrolment token", _in_words(known))


def _in_words(token: EnrolmentRecord) -> str:
    return f"{token.id} for {token.device or 'any new device'} in {token.group or 'its group'}"


# -- the first certificate


def check_token(store: Store, secret: str, device: str, now_s: float) -> None:
    """Raise ``UntrustedError`` for a token that does not let ``device`` in; cheap, and so the first of the checks."""
    with store.reading() as tx:
        _good(tx, secret, device, now_s)


def enrol(store: Store, fleet: Fleet, secret: str, asked: Enrolment, now_s: float) -> x509.Certificate:
    """Make a certificate for the bearer of a token; the same token, device and key get the same one again.

    The device's earlier certificates are revoked, since their keys are no longer on the device.
    Raises ``UntrustedError`` for a bad token, ``MalformedMessageError`` for a bad request.
    """
    check_token(store, secret, asked.device, now_s)
    key = key_of(_request(asked.request.encode()), asked.device)
    with store.transaction() as tx:
        token = _good(tx, secret, asked.device, now_s)
        if token.used_s is not None:
            return _given(tx, asked.device, key) or _refuse_used(token)
        tx.enrolments.used(token.digest, asked.device, now_s)
        tx.certificates.revoke(asked.device, now_s)
        tx.devices.enrol(asked.device, token.group, now_s)
        tx.audit.note(now_s, f"{asked.device}, enrolling", "enrol device", f"{asked.device} by token {token.id}")
        return _issued(tx, fleet, asked.device, key, now_s)


def _good(tx: Transaction, secret: str, device: str, now_s: float) -> EnrolmentRecord:
    """The store's record of a token that lets ``device`` in; a used token lets only the device in that used it."""
    known = tx.enrolments.of_digest(digest_of(secret)) if len(secret) <= _MAX_SECRET else None
    if known is None:
        raise UntrustedError("the token is unknown")
    if now_s >= known.expires_s:
        raise UntrustedError("the token has expired: ask for a new one")
    if known.device not in {None, device}:
        raise UntrustedError(f"the token is for another device than {device!r}")
    if known.used_s is not None and known.used_by != device:
        _refuse_used(known)
    if known.used_s is None and known.device is None and _is_taken(tx, device):
        raise UntrustedError(f"{device!r} has enrolled before or is revoked: it needs a token made with --device")
    return known


def _is_taken(tx: Transaction, device: str) -> bool:
    owner = tx.devices.get(device)
    return owner is not None and (owner.revoked_s is not None or bool(tx.certificates.of_device(device)))


def _refuse_used(token: EnrolmentRecord) -> NoReturn:
    raise UntrustedError(f"the token was used by {token.used_by}: ask for a new one")


# -- the next


def renew(store: Store, fleet: Fleet, device: str, asked: Renew, now_s: float) -> x509.Certificate:
    """Make a new certificate for a device that shows its old one; the same key gets the same one again.

    Raises ``UntrustedError`` if the old one is not this device's, not valid, or too new to be renewed, and
    ``MalformedMessageError`` for a bad request.
    """
    old = _certificate(asked.certificate)
    fleet.authority.check(old, now_s)
    if _common_name(old.subject) != device:
        raise UntrustedError("the certificate belongs to another device")
    key = key_of(_request(asked.request), device)
    _check_signature(old, asked)
    with store.transaction() as tx:
        known, owner = tx.certificates.get(f"{old.serial_number:x}"), tx.devices.get(device)
        if known is None or known.revoked_s is not None or owner is None or owner.revoked_s is not None:
            raise UntrustedError("the certificate is revoked")
        return _given(tx, device, key) or _next(tx, fleet, old, device, key, now_s)


def _next(
    tx: Transaction, fleet: Fleet, old: x509.Certificate, device: str, key: EllipticCurvePublicKey, now_s: float
) -> x509.Certificate:
    begins_s, ends_s = span_of(old)
    if now_s < (due_s := begins_s + _RENEWED_FROM * (ends_s - begins_s)):
        raise UntrustedError(f"the certificate is renewed from {_day(due_s)} on, not before")
    if sum(it.expires_s > now_s and it.revoked_s is None for it in tx.certificates.of_device(device)) >= _MAX_VALID:
        raise UntrustedError(f"{device} has {_MAX_VALID} valid certificates: revoke it, and have it enrol again")
    tx.audit.note(now_s, f"{device}, renewing", "renew certificate", device)
    return _issued(tx, fleet, device, key, now_s)


def _check_signature(old: x509.Certificate, asked: Renew) -> None:
    key = old.public_key()
    if not isinstance(key, EllipticCurvePublicKey):
        raise UntrustedError("the certificate has a key of another kind")
    try:
        key.verify(asked.signature, signed_for_renewal(asked.request), ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise UntrustedError("the request to renew is not signed by the certificate's key") from error


def _issued(tx: Transaction, fleet: Fleet, device: str, key: EllipticCurvePublicKey, now_s: float) -> x509.Certificate:
    known = tx.devices.get(device)
    group = DEFAULT_GROUP if known is None else known.group
    made = fleet.authority.device(key, device, group, days=fleet.settings.certificate_days, now_s=now_s)
    _, ends_s = span_of(made)
    serial, encoded = f"{made.serial_number:x}", made.public_bytes(Encoding.DER)
    tx.certificates.add(CertificateRecord(serial, device, now_s, ends_s, encoded))
    return made


def _given(tx: Transaction, device: str, key: EllipticCurvePublicKey) -> x509.Certificate | None:
    """The certificate that was already made for this key: the device may not have received it."""
    for known in tx.certificates.of_device(device):
        certificate = x509.load_der_x509_certificate(known.certificate)
        if known.revoked_s is None and certificate.public_key() == key:
            return certificate
    return None


# -- what devices send


def key_of(request: x509.CertificateSigningRequest, device: str) -> EllipticCurvePublicKey:
    """The public key of a signing request for ``device``; nothing else in the request is used.

    Raises ``MalformedMessageError`` for a key that is not EC P-256, a wrong signature, or another device's name.
    """
    try:
        key, name, is_signed = request.public_key(), _common_name(request.subject), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedMessageError(f"the certificate request cannot be read: {error}") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise MalformedMessageError("the certificate request has a key of another kind: make one of EC P-256")
    if not is_signed:
        raise MalformedMessageError("the certificate request is not signed by its key")
    if name != device:
        raise MalformedMessageError(f"the certificate request is for {name!r}, not {device!r}")
    return key


def _request(encoded: bytes) -> x509.CertificateSigningRequest:
    load = x509.load_pem_x509_csr if encoded.startswith(b"-----") else x509.load_der_x509_csr
    try:
        return load(encoded)
    except ValueError as error:
        raise MalformedMessageError(f"the certificate request cannot be read: {error}") from error


def _certificate(encoded: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(encoded)
    except ValueError as error:
        raise MalformedMessageError(f"the certificate cannot be read: {error}") from error


def _common_name(subject: x509.Name) -> str | None:
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().isoformat(" ", "minutes")
