"""A broker's address and how to connect to it: user and password, TLS, and explanations of failed connections."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from edge_sdk.errors import ConfigurationError

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
_HOST = re.compile(r"[\w.:%-]+")
_ASK_TIMEOUT_S = 5.0
_ALERT_TIMEOUT_S = 0.5
_PING = b"\xc0\x00"
_ALERTS = {  # TLS alerts by OpenSSL's names; before TLS 1.3, a missing certificate is a handshake failure
    "CERTIFICATE_REQUIRED": "it wants a certificate, and gets none: enrol this device, or give --certificate-file",
    "HANDSHAKE_FAILURE": "it wants a certificate, and gets none: enrol this device, or give --certificate-file",
    "CERTIFICATE_REVOKED": "its certificate is revoked: enrol again, with a new token",
    "CERTIFICATE_EXPIRED": "its certificate has expired: enrol again, with a new token",
    "UNKNOWN_CA": "its certificate is of an authority that the broker does not trust: enrol in the broker's fleet",
}
LAST_OF_SELECT = 1023
"""The largest number of an open file that select takes: FD_SETSIZE - 1, fixed in the C library."""
_EXPIRED, _NOT_YET_VALID, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_…


class BeyondSelectError(OSError):
    """A connection got a file number above :data:`LAST_OF_SELECT`."""


class MqttVersion(str, Enum):
    """The version to speak with the broker; ``ANY`` is 5, or 3.1.1 if the broker answers that it does not speak 5."""

    ANY = "any"
    V5 = "5"
    V311 = "3.1.1"


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens: ``mqtt://host:port``, or ``mqtts://host:port`` for TLS."""

    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """Parse an address, with or without a port. Raises ``ConfigurationError``, which quotes no password."""
        try:
            parts = urlsplit(text)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
            (host or "").encode("idna")  # as a look-up does, which has no named error for it
        except ValueError as error:
            msg = f"broker address cannot be read ({error}): use mqtt://host:port or mqtts://host:port"
            raise ConfigurationError(msg) from error
        if "@" in parts.netloc:
            msg = f"broker address for {host!r} holds a user name or password: give them apart from the address"
            raise ConfigurationError(msg)
        is_host = _HOST.fullmatch(host or "")
        if scheme not in _DEFAULT_PORTS or not host or not is_host or port == 0 or parts.path.strip("/") or parts.query:
            msg = f"broker address {text!r} is not of the form mqtt://host:port or mqtts://host:port"
            raise ConfigurationError(msg)
        return cls(host, port or _DEFAULT_PORTS[scheme], scheme == "mqtts")

    def __str__(self) -> str:
        """The address in the form that :meth:`parse` reads."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether bytes to this address stay on this machine."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password for the broker; the password stays out of logs and tracebacks."""

    user: str
    password: str = field(repr=False)


class BrokerSettings(Protocol):
    """The settings of a broker that agents, coordinators and doctors have in common."""

    @property
    def broker(self) -> str | None:
        """Its address."""

    @property
    def user(self) -> str | None:
        """The user name to log in with."""

    @property
    def password(self) -> str | None:
        """The user's password."""

    @property
    def ca_file(self) -> Path | None:
        """A file of the authorities that TLS trusts, instead of the system's."""

    @property
    def certificate_file(self) -> Path | None:
        """The certificate to show, with its chain."""

    @property
    def key_file(self) -> Path | None:
        """The certificate's key, if it is not in the same file."""

    @property
    def allow_plaintext(self) -> bool:
        """Whether a broker on another machine may be used without TLS."""

    @property
    def mqtt_version(self) -> MqttVersion:
        """The version of MQTT to speak."""


class _TidySocket(ssl.SSLSocket):
    """Closes itself if its handshake fails; paho would leave it open."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def is_loopback(host: str) -> bool:
    """Whether this name or address is this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_plaintext(address: BrokerAddress, *, allow_plaintext: bool) -> None:
    """Raise ``ConfigurationError`` for an address on another machine without TLS, unless ``allow_plaintext``."""
    if not (address.tls or address.is_loopback or allow_plaintext):
        msg = f"{address} would send everything readable over the network: use mqtts://, or allow plaintext explicitly"
        raise ConfigurationError(msg)


def tls_context(
    ca_file: Path | None, certificate_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """TLS 1.2 or newer that trusts the system's authorities, or those in ``ca_file`` alone.

    It shows the certificate in ``certificate_file``, if given. Raises ``ConfigurationError`` for a file that cannot be
    read.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise _unreadable(ca_file, error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TidySocket
    if certificate_file is not None:
        show_certificate(context, certificate_file, key_file)
    return context


def trust_authorities(context: ssl.SSLContext, ca_file: Path) -> None:
    """Make ``context`` trust those in ``ca_file`` too. Raises ``ConfigurationError`` if it cannot be read."""
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise _unreadable(ca_file, error) from error


def show_certificate(context: ssl.SSLContext, certificate_file: Path, key_file: Path | None) -> None:
    """Make ``context`` show this certificate from now on. Raises ``ConfigurationError`` if it cannot be used."""
    try:
        context.load_cert_chain(certificate_file, key_file, password=b"")  # b"": without it OpenSSL asks the terminal
    except OSError as error:
        where = certificate_file if key_file is None else f"{certificate_file} and {key_file}"
        msg = f"no certificate with its key can be read from {where} ({error}): give PEM files, the key unencrypted"
        raise ConfigurationError(msg) from error


def why_refused(address: BrokerAddress, context: ssl.SSLContext) -> str:
    """Why a broker that answers refuses the certificate of ``context``, or its lack; "" if it does not.

    With TLS 1.3 a broker refuses only after the handshake. So it gets a moment to do that, and then MQTT's shortest
    packet, which it has to answer or hang up on. No MQTT session is affected. Raises ``OSError`` if nobody answers, or
    not with TLS that ``context`` trusts.
    """
    with socket.create_connection((address.host, address.port), _ASK_TIMEOUT_S) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=address.host) as tls:
                tls.settimeout(_ALERT_TIMEOUT_S)
                with suppress(TimeoutError):
                    tls.recv(1)
                    return ""
                tls.settimeout(_ASK_TIMEOUT_S)
                tls.sendall(_PING)
                tls.recv(1)
        except ssl.SSLError as error:
            for name, words in _ALERTS.items():
                if name in (error.reason or ""):
                    return words
            raise
    return ""


def why_unreachable(address: BrokerAddress, error: OSError) -> str:
    """In words, why a connection to ``address`` failed with ``error``, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"broker at {address} is not trusted: {error.verify_message.rstrip('.')}: {trust_advice(error)}"
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return f"no file is left for a connection to {address}: raise `ulimit -n`, or LimitNOFILE of the service"
    if isinstance(error, BeyondSelectError):
        return (
            f"no connection to {address}: this process has more than {LAST_OF_SELECT} open files, and MQTT needs one of"
            " the first; close some, or let the agent be a process of its own (edge-agent run)"
        )
    if address.tls and isinstance(error, ssl.SSLError | ConnectionResetError):
        return f"no TLS at {address} ({_short(error)}): check that this is the port for TLS"
    return f"no broker answers at {address} ({error}): check the address and that the broker runs"


def _unreadable(ca_file: Path | None, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"certificate authorities cannot be read from {ca_file} ({error}): give a PEM file")


def trust_advice(error: ssl.SSLCertVerificationError) -> str:
    """What to do about a certificate that is not trusted."""
    if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
        now = time.strftime("%Y-%m-%d %H:%M %Z")
        return f"renew its certificate, or set this machine's clock, which says {now}"
    if error.verify_code in {_OTHER_HOST, _OTHER_ADDRESS}:
        return "use the name that its certificate is for"
    return "give its authority's certificate (--ca-file)"


def _short(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)
