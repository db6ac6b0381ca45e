"""This device's key and certificate, and what else it got when it enrolled: the folder ``identity`` of its state.

    identity.pem    secret: validity, key and certificate, in one file, so that they change together
    new.key         secret: a key that waits for its certificate
    authority.pem   the fleet's authority, the only one that is trusted for its broker
    root.json       the root of trust, which says whose releases are installed
    agent.toml      settings from the fleet, which any other setting overrides

No key ever leaves the folder. ``cryptography`` is imported where it is used, since only enrolling and renewing need its
memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.decoding import brief
from edge_sdk.disk import create_durably, disk_errors, write_durably
from edge_sdk.errors import ConfigurationError, UntrustedError
from edge_sdk.protocol.identity import signed_for_renewal
from edge_sdk.protocol.messages import Renew

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

_SPAN = re.compile(rb"good from (\d+) to (\d+), in seconds since 1970\n")


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity in ``folder``, or the one that will be there."""

    folder: Path

    @classmethod
    def of(cls, state_dir: Path) -> Identity:
        """The identity of the agent whose state is in ``state_dir``."""
        return cls(state_dir / "identity")

    @property
    def file(self) -> Path:
        """The certificate that this device shows, with its key."""
        return self.folder / "identity.pem"

    @property
    def authority_file(self) -> Path:
        """The authority that this device trusts."""
        return self.folder / "authority.pem"

    @property
    def settings_file(self) -> Path:
        """The settings from the fleet; exists once the device has enrolled."""
        return self.folder / "agent.toml"

    @property
    def root_file(self) -> Path:
        """The root of trust: whose releases are installed."""
        return self.folder / "root.json"

    @property
    def _new_key_file(self) -> Path:
        return self.folder / "new.key"

    def span(self) -> tuple[float, float]:
        """The certificate's validity (from, to), in seconds since 1970.

        Raises ``ConfigurationError`` if another program wrote the file, ``StorageError`` from the disk.
        """
        with disk_errors(self.file), self.file.open("rb") as file:
            found = _SPAN.fullmatch(file.readline())
        if found is None:
            raise ConfigurationError(f"{self.file} does not begin as `edge-agent enroll` writes it: enrol again")
        return float(found[1]), float(found[2])

    def request(self, device: str) -> bytes:
        """A certificate request (DER) for ``device``, with a new key or with one that was requested before."""
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])
        signed = x509.CertificateSigningRequestBuilder(name).sign(self._new_key(), hashes.SHA256())
        return signed.public_bytes(Encoding.DER)

    def renewal(self, device: str) -> Renew:
        """The message that asks the coordinator for the next certificate."""
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

        certificate, key = self._kept()
        request = self.request(device)
        signature = key.sign(signed_for_renewal(request), ECDSA(hashes.SHA256()))
        return Renew(certificate=certificate.public_bytes(Encoding.DER), request=request, signature=signature)

    def has(self, encoded: bytes) -> bool:
        """Whether this certificate (DER) is the device's. Raises as :meth:`span`."""
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

        return self._kept()[0].public_bytes(Encoding.DER) == encoded

    def keep(self, encoded: bytes, device: str) -> None:
        """Replace the certificate by the one (DER) that answers :meth:`request`.

        Raises ``UntrustedError`` if it is not the authority's, not for ``device`` or not for the requested key, and
        ``StorageError`` from the disk.
        """
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

        key = self._new_key()
        certificate = self._checked(encoded, key, device)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        head = f"good from {begins.timestamp():.0f} to {ends.timestamp():.0f}, in seconds since 1970\n"
        with disk_errors(self.file):
            whole = head.encode() + _pem_of(key) + certificate.public_bytes(Encoding.PEM)
            write_durably(self.file, whole, secret=True)
            self._new_key_file.unlink(missing_ok=True)

    def _checked(self, encoded: bytes, key: EllipticCurvePrivateKey, device: str) -> Certificate:
        from cryptography import x509  # noqa: PLC0415
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415

        with disk_errors(self.authority_file):
            authority = self.authority_file.read_bytes()
        try:
            certificate = x509.load_der_x509_certificate(encoded)
            certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
            is_for_key = certificate.public_key() == key.public_key()
            names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise UntrustedError(
                f"certificate refused: it is none of the fleet's authority ({brief(error)})"
            ) from error
        if names != [device] or not is_for_key:
            raise UntrustedError(f"certificate refused: it is not for the key that {device} has made")
        return certificate

    def _kept(self) -> tuple[Certificate, EllipticCurvePrivateKey]:
        from cryptography import x509  # noqa: PLC0415

        with disk_errors(self.file):
            whole = self.file.read_bytes()
        try:
            certificate = x509.load_pem_x509_certificate(whole)
        except ValueError as error:
            raise ConfigurationError(f"{self.file} has no certificate ({brief(error)}): enrol again") from error
        return certificate, _read_key(whole, self.file)

    def _new_key(self) -> EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key  # noqa: PLC0415

        with disk_errors(self._new_key_file):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._new_key_file.exists():
                create_durably(self._new_key_file, _pem_of(generate_private_key(SECP256R1())))
            return _read_key(self._new_key_file.read_bytes(), self._new_key_file)


def _pem_of(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_key(pem: bytes, path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} has no key ({error}): enrol again") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} has a key of another kind: enrol again")
    return key
