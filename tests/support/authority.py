"""A throw-away certificate authority, and certificates of servers that it signs."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_DAY = timedelta(days=1)


class Authority:
    """Its own certificate is ``ca_file``; everything lies in ``folder``."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        self._folder, self._name, self._key = folder, _name(name), ec.generate_private_key(ec.SECP256R1())
        self.ca_file = folder / f"{name.replace(' ', '-')}.pem"
        builder = self._builder(name, self._key.public_key(), datetime.now(timezone.utc) + _DAY)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.ca_file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def server(self, host: str = "127.0.0.1", *, expired: bool = False) -> tuple[Path, Path]:
        """The files of a certificate for ``host`` and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = datetime.now(timezone.utc) + (-_DAY if expired else _DAY)
        names = x509.SubjectAlternativeName([_alternative(host)])
        builder = self._builder(host, key.public_key(), until).add_extension(names, critical=False)
        certificate, key_file = self._folder / f"{host}.crt", self._folder / f"{host}.key"
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key_file

    def client(self, request: bytes, lives_s: float = 86400.0) -> bytes:
        """The certificate (DER) that a request (PKCS #10) asks for, good from now on."""
        asked = x509.load_der_x509_csr(request)
        name = asked.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        ends = datetime.now(timezone.utc) + timedelta(seconds=lives_s)
        builder = self._builder(str(name), asked.public_key(), ends, timedelta(seconds=lives_s))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)

    def _builder(
        self, subject: str, key: ec.EllipticCurvePublicKey, until: datetime, lives: timedelta = 2 * _DAY
    ) -> x509.CertificateBuilder:
        own = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(until - lives)
            .not_valid_after(until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
