"""A device joins a fleet, with a one-time token and a fleet authority that it knows beforehand.

1. The authority's certificate comes from a file, or from the coordinator; then a person has given its digest.
2. The key is made here. The token is sent only to a server whose certificate the authority has signed.
3. The answer is checked against the authority and the key before anything of it is stored.

If an answer was lost, enrolling again with the same token gets the same certificate.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import ssl
from pathlib import Path
from tempfile import NamedTemporaryFile

import msgspec

from edge_sdk.decoding import UNDECODABLE, brief
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import ConfigurationError, MalformedMessageError, UntrustedError
from edge_sdk.protocol.identity import MAX_ENROLMENT_BYTES, Enrolled, Enrolment
from edge_sdk.protocol.topics import check_name
from edge_sdk.security.identity import Identity
from edge_sdk.security.trust import load_root
from edge_sdk.transport.address import BrokerAddress, tls_context
from edge_sdk.transport.web import ask, check_address

_TOKEN = re.compile(r"[!-~]+")
_FINGERPRINT = re.compile(r"sha256:([0-9a-f]{64})")
_HEAD = "# What the fleet has told this device when it enrolled. Whatever is said elsewhere is stronger."


def enroll(
    coordinator: str, token: str, device: str, state_dir: Path, *, ca_file: Path | None, fingerprint: str | None
) -> Enrolled:
    """Enrol ``device`` with the coordinator at this web address; the answer is stored in ``state_dir``.

    The fleet's authority is in ``ca_file``, or is fetched and compared with ``fingerprint``, "sha256:" and 64
    hexadecimal digits. Raises ``ConfigurationError`` for arguments that cannot be right,
    ``CoordinatorUnreachableError`` if nobody answers, ``MalformedMessageError`` for an answer that is none, and
    ``UntrustedError`` if the coordinator refuses, or its certificate is not the authority's.
    """
    check_name(device, "device")
    if not _TOKEN.fullmatch(token):
        raise ConfigurationError("the token has characters that cannot be in a token: copy it again")
    base, identity = check_address(coordinator).rstrip("/"), Identity.of(state_dir)
    authority = _authority(base, ca_file, fingerprint)
    with disk_errors(identity.folder):
        identity.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    request = ssl.DER_cert_to_PEM_cert(identity.request(device)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    enrolled = _enrolled(base, _trusting(authority), token, Enrolment(device=device, request=request))
    with disk_errors(identity.folder):  # not before: where enrolling fails, an earlier identity stays whole
        write_durably(identity.authority_file, authority)
    identity.keep(ssl.PEM_cert_to_DER_cert(enrolled.certificate), device)
    _write_settings(identity, device, enrolled)
    return enrolled


def _trusting(authority: bytes) -> ssl.SSLContext:
    with NamedTemporaryFile(suffix=".pem") as file:
        file.write(authority)
        file.flush()
        return tls_context(Path(file.name))


def _authority(base: str, ca_file: Path | None, fingerprint: str | None) -> bytes:
    """The certificate to trust, in PEM."""
    if ca_file is not None:
        tls_context(ca_file)
        return ca_file.read_bytes()
    if fingerprint is None:
        raise ConfigurationError(
            "the CA to trust is not given: use --ca-file, or --ca-fingerprint (`coordinator device token` prints it)"
        )
    wanted = _FINGERPRINT.fullmatch(fingerprint.strip().lower())
    if wanted is None:
        raise ConfigurationError(f"fingerprint {fingerprint!r} is not sha256: and 64 hexadecimal digits")
    pem = ask(f"{base}/enroll/authority", _trusting_nobody(), max_bytes=MAX_ENROLMENT_BYTES)
    try:
        certificate = ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
    except ValueError as error:
        raise UntrustedError(f"{base} sent no CA certificate: {brief(error)}") from error
    found = hashlib.sha256(certificate).hexdigest()
    if not hmac.compare_digest(found, wanted[1]):
        raise UntrustedError(f"{base} has another CA, sha256:{found}: check the address and the fingerprint")
    return ssl.DER_cert_to_PEM_cert(certificate).encode()  # only it: the answer could hold a second certificate


def _trusting_nobody() -> ssl.SSLContext:
    """A context that verifies nothing, to fetch a public file whose digest is compared afterwards."""
    context = tls_context(None)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _enrolled(base: str, tls: ssl.SSLContext, token: str, asked: Enrolment) -> Enrolled:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = ask(f"{base}/enroll", tls, msgspec.json.encode(asked), headers, max_bytes=MAX_ENROLMENT_BYTES)
    try:
        enrolled = msgspec.json.decode(answer, type=Enrolled)
        broker = str(BrokerAddress.parse(enrolled.broker))
        ssl.PEM_cert_to_DER_cert(enrolled.certificate)
    except (*UNDECODABLE, ValueError, ConfigurationError) as error:
        raise MalformedMessageError(f"{base} answers, but not as a coordinator does: {brief(error)}") from error
    return msgspec.structs.replace(enrolled, broker=broker)


def _write_settings(identity: Identity, device: str, enrolled: Enrolled) -> None:
    """Store the root of trust and the settings, these last: without them the device has not enrolled."""
    settings = {
        "device": device,
        "broker": enrolled.broker,
        "fleet": enrolled.fleet,
        "ca_file": identity.authority_file.name,
        "certificate_file": identity.file.name,
        "root": identity.root_file.name,
    }
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in settings.items()]
    with disk_errors(identity.folder):
        write_durably(identity.root_file, enrolled.root.encode())
        load_root(identity.root_file)
        write_durably(identity.settings_file, "\n".join((_HEAD, *lines, "")).encode())
