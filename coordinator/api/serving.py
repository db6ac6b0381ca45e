"""Serves the API as a process: on loopback, or with TLS."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import ssl
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from coordinator.api.connections import Connection
from coordinator.fleet.folder import Fleet
from edge_sdk.disk import raise_file_limit
from edge_sdk.errors import ConfigurationError, PortInUseError
from edge_sdk.transport.address import is_loopback, show_certificate

_log = logging.getLogger(__name__)
_GRACE_S = 3  # time to finish answers that have been begun
_PORT = 8080
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - only compared with
_BACKLOG = 128  # asyncio logs so many times at once that the process is out of files


@dataclass(frozen=True, slots=True)
class Listening:
    """Where to listen, and with which certificate.

    ``name`` is the host name for others, used in :attr:`address` if ``host`` stands for every interface. Raises
    ``ConfigurationError`` for plain HTTP beyond this machine, unless it is allowed, and for an unusable certificate.
    """

    host: str = "127.0.0.1"
    port: int = _PORT
    certificate: Path | None = None
    key: Path | None = None
    allow_plaintext: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        if self.certificate is None and not is_loopback(self.host) and not self.allow_plaintext:
            raise ConfigurationError(
                f"tokens would cross the network in plain text to {self.host}: give --certificate and --key, or "
                "--allow-plaintext"
            )
        for file in (self.certificate, self.key):
            if file is not None and not file.is_file():
                raise ConfigurationError(f"there is no file {file}")
        if self.certificate is not None:
            show_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.certificate, self.key)

    @classmethod
    def of(
        cls,
        fleet: Fleet | None,
        host: str,
        port: int | None,
        certificate: Path | None,
        key: Path | None,
        *,
        allow_plaintext: bool,
    ) -> Listening:
        """The given settings, completed from those of a fleet with an authority.

        If there is no certificate, the fleet's authority makes one, unless plain text is allowed. Also raises
        ``ConfigurationError`` for a key without its certificate, and ``StorageError`` if the disk refuses.
        """
        if certificate is None and key is not None:
            raise ConfigurationError(f"--key {key} is given without --certificate: give both")
        if fleet is None:
            return cls(host, port or _PORT, certificate, key, allow_plaintext)
        if certificate is None and not allow_plaintext:
            certificate = fleet.make_api_certificate()
        name, usual = fleet.settings.hosts[0], fleet.settings.api_port
        return cls(host, port or usual, certificate, key, allow_plaintext, name)

    @property
    def address(self) -> str:
        """The URL for a browser."""
        named = self.name if self.host in _EVERYWHERE and self.name else self.host
        host = f"[{named}]" if ":" in named else named
        return f"{'http' if self.certificate is None else 'https'}://{host}:{self.port}"


def serve_api(app: FastAPI, listening: Listening, dashboard: str | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM, and then at most ``_GRACE_S`` seconds more.

    ``dashboard`` is the path of the dashboard, if there is one, for the log. Raises ``PortInUseError`` if the port is
    taken, and ``ConfigurationError`` if the address cannot be listened on.
    """
    raise_file_limit()  # a connection is one, even before its TLS handshake
    with closing(_listener(listening)) as listener:
        where = listening.address
        also = "" if dashboard is None else f", dashboard at {where}{dashboard}"
        _log.info("API at %s/api/v1, documented at %s/docs%s; Ctrl-C ends it", where, where, also)
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            http=Connection,
            backlog=_BACKLOG,
            ssl_certfile=listening.certificate,
            ssl_keyfile=listening.key,
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = uvicorn.Server(config)

        def stop(*_: object) -> None:  # for signals before uvicorn handles them, and those it re-raises at its end
            server.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        server.run([listener])
        _log.info("the API has ended")


def _listener(listening: Listening) -> socket.socket:
    family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
    try:
        return socket.create_server((listening.host, listening.port), family=family)
    except OSError as error:
        where = f"{listening.host}:{listening.port}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"{where} is in use: stop the process that listens there, or choose another --port"
            ) from error
        raise ConfigurationError(f"cannot listen on {where}: {error.strerror}") from error
