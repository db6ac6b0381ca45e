"""The fleet's own certificate authority, and what it signs. :mod:`coordinator.fleet.folder` keeps its key.

    authority        signs certificates and their revocation, nothing else; no authority below it
    ├── device       a client: its id as common name, its group as organizational unit
    ├── coordinator  a client: a common name that no device can have
    └── server       the broker and the API: names and addresses

Keys are EC P-256. What a certificate may be used for follows from its kind, never from what was asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.topics import check_name, coordinator_name

MAX_COMMON_NAME = 64
"""Characters of a common name (RFC 5280, ub-common-name)."""
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_MAX_HOST = 253
_DAY_S = 86400.0
_AUTHORITY_DAYS = 3650.0
_SERVER_DAYS = 825.0
_STAND_IN_DAYS = 10 / 1440
_BACKDATED_S = 3600.0  # for brokers and devices whose clocks are behind
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate, and its private key, which was made on this machine."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM, which everybody may read."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as PEM, unencrypted: a secret."""
        return pem_of(self.key)


@dataclass(frozen=True, slots=True)
class Authority(Signed):
    """The certificate authority of one fleet. ``now_s`` in its methods is in seconds since 1970."""

    @classmethod
    def create(cls, fleet: str, key: EllipticCurvePrivateKey, now_s: float) -> Authority:
        """A new authority whose certificate ``key`` signs itself; it is valid for ten years."""
        subject = _name(f"raffm-edge {check_name(fleet, 'fleet')}")
        builder = _builder(subject, subject, key.public_key(), key.public_key(), _span(now_s, _AUTHORITY_DAYS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, certificate_pem: bytes, key_pem: bytes) -> Authority:
        """The authority with these PEM files; ``ConfigurationError`` if one is damaged, or the two are not a pair."""
        key = read_key(key_pem)
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except ValueError as error:
            raise ConfigurationError(f"the authority's certificate is damaged ({error}): restore it") from error
        if certificate.public_key() != key.public_key():
            raise ConfigurationError("the authority's key is not that of its certificate: restore both")
        return cls(certificate, key)

    @property
    def fingerprint(self) -> str:
        """The digest of the authority's certificate, by which a new device knows that it may trust it."""
        return fingerprint_of(self.certificate.public_bytes(Encoding.DER))

    def device(
        self, key: EllipticCurvePublicKey, device: str, group: str, *, days: float, now_s: float
    ) -> x509.Certificate:
        """A client certificate for a device, valid for ``days``; see the table above for its names."""
        subject = _name(check_name(device, "device"), group)
        return self._client(key, subject, _span(now_s, days))

    def coordinator(self, fleet: str, now_s: float) -> Signed:
        """A certificate for the coordinator itself, valid as long as the authority's, whose key lies beside it."""
        key = new_key()
        left_days = (self.certificate.not_valid_after_utc.timestamp() - now_s) / _DAY_S
        return Signed(self._client(key.public_key(), _name(coordinator_name(fleet)), _span(now_s, left_days)), key)

    def stand_in(self, device: str, now_s: float) -> Signed:
        """A certificate in a device's name, valid for ten minutes, to see whether the broker lets the device in."""
        key = new_key()
        return Signed(self._client(key.public_key(), _name(device), _span(now_s, _STAND_IN_DAYS)), key)

    def server(self, hosts: Sequence[str], now_s: float) -> Signed:
        """A certificate for a server that listens at these names and addresses."""
        key = new_key()
        common = next(
            (host for host in hosts if len(host) <= MAX_COMMON_NAME), "server"
        )  # the names beside it are what counts
        builder = self._builder(_name(common), key.public_key(), _span(now_s, _SERVER_DAYS))
        names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
        builder = _end(builder, ExtendedKeyUsageOID.SERVER_AUTH).add_extension(names, critical=False)
        return Signed(builder.sign(self.key, hashes.SHA256()), key)

    def revocations(
        self, serials: Iterable[int], number: int, now_s: float, *, after: datetime | None = None
    ) -> x509.CertificateRevocationList:
        """The list of revoked certificates, valid as long as the authority's own certificate.

        A broker that reads the new list keeps the old one too, and goes by the one with the later date. So the new date
        is at least one second later than ``after``, the date of the old list; lists are backdated to leave room for it.
        """
        dated = datetime.fromtimestamp(int(now_s - _BACKDATED_S), timezone.utc)
        if after is not None:
            dated = max(dated, after + timedelta(seconds=1))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(dated)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for serial in sorted(serials):
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(dated).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self.key, hashes.SHA256())

    def check(self, certificate: x509.Certificate, now_s: float) -> None:
        """Raise ``UntrustedError`` for a certificate that this authority did not sign, or that is not valid now."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise UntrustedError("the certificate is not of this fleet's authority") from error
        begins_s, ends_s = span_of(certificate)
        if not begins_s <= now_s < ends_s:
            begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            raise UntrustedError(f"the certificate is not good now: it is valid from {begins} until {ends}")

    def _client(
        self, key: EllipticCurvePublicKey, subject: x509.Name, span: tuple[datetime, datetime]
    ) -> x509.Certificate:
        builder = _end(self._builder(subject, key, span), ExtendedKeyUsageOID.CLIENT_AUTH)
        return builder.sign(self.key, hashes.SHA256())

    def _builder(
        self, subject: x509.Name, key: EllipticCurvePublicKey, span: tuple[datetime, datetime]
    ) -> x509.CertificateBuilder:
        return _builder(subject, self.certificate.subject, key, self.key.public_key(), span)


def new_key() -> EllipticCurvePrivateKey:
    """A new private key of the only kind that is used here: EC P-256."""
    return generate_private_key(SECP256R1())


def pem_of(key: EllipticCurvePrivateKey) -> bytes:
    """The private key as unencrypted PEM; a file that it is written into is a secret."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_key(pem: bytes) -> EllipticCurvePrivateKey:
    """The key that :func:`pem_of` wrote; ``ConfigurationError`` for anything else."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"the authority's key is damaged ({error}): restore it") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigurationError("the authority's key is not an elliptic curve's: restore it")
    return key


def fingerprint_of(der: bytes) -> str:
    """The SHA-256 of a certificate in DER, as people type it: ``sha256:<hex>``."""
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def span_of(certificate: x509.Certificate) -> tuple[float, float]:
    """From when and until when a certificate is valid, in seconds since 1970."""
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def _name(common: str, unit: str | None = None) -> x509.Name:
    units = [] if unit is None else [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)]
    return x509.Name([*units, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _span(now_s: float, days: float) -> tuple[datetime, datetime]:
    """A validity of ``days`` that is backdated by an hour, or by a tenth of ``days`` if that is less."""
    begins_s = now_s - min(_BACKDATED_S, days * _DAY_S / 10)
    begins, ends = (datetime.fromtimestamp(int(at_s), timezone.utc) for at_s in (begins_s, now_s + days * _DAY_S))
    return begins, ends


def _usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePublicKey,
    signer: EllipticCurvePublicKey,
    span: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), *span)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _end(builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier) -> x509.CertificateBuilder:
    """Add what an end-entity certificate has, which signs no other: its one ``purpose``."""
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )


def check_host(host: str) -> None:
    """``ConfigurationError`` for what no server's certificate can be for."""
    try:
        ip_address(host)
    except ValueError:
        if not (len(host) <= _MAX_HOST and _HOST.fullmatch(host)):
            raise ConfigurationError(
                f"host {host!r} is neither a name of a-z, 0-9, '-' and '.' nor an address: a name with other letters "
                "is given as DNS has it, beginning with xn--"
            ) from None


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
