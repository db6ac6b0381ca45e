"""An HTTP client for servers that need not be trusted: none of them can keep it waiting for ever.

Every read (of a head, of a part of a blob, of a whole answer) has a time limit. A server can neither trickle bytes nor
exceed the limit by what HTTP allows before, between and after the requested bytes.

Import this module only when asking: Python's own HTTP modules take memory.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
from functools import partial
from http.client import HTTPConnection, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from edge_sdk.errors import BlobUnreachableError
from edge_sdk.transport.address import is_loopback

SILENCE_S = 20.0
"""The longest time between two bytes."""


class Patience:
    """The time limit of one read, ``whole_s``; :meth:`begin` starts it again."""

    def __init__(self, whole_s: float) -> None:
        self._whole_s = whole_s
        self.begin()

    def begin(self) -> None:
        """Start the time limit now."""
        self._ends_s = time.monotonic() + self._whole_s

    def left_s(self) -> float:
        """The longest time to wait for the next byte; ``TimeoutError`` if the time limit is over."""
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"the response was not complete after {self._whole_s:g} s")
        return min(left_s, SILENCE_S)


def opener(address: str, tls: ssl.SSLContext | None, patience: Patience, *, follows: bool) -> OpenerDirector:
    """An opener for requests to ``address``. It ``follows`` redirects only to blobs: other requests carry secrets."""
    proxies = [ProxyHandler({})] if is_loopback(urlsplit(address).hostname or "") else []
    redirects = _Redirects() if follows else _NoRedirects()
    return build_opener(*proxies, redirects, _Plain(patience), _Secure(patience, tls))


class _Heard(io.RawIOBase):
    """Reads from a socket within a :class:`Patience`."""

    def __init__(self, link: socket.socket, patience: Patience) -> None:
        self._link, self._patience = link, patience
        self._raw = link.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - any that can be written to
        self._link.settimeout(self._patience.left_s())
        try:
            return self._raw.readinto(buffer)
        except TimeoutError:
            self._patience.left_s()
            raise

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Link:
    """A socket, as far as :mod:`http.client` uses one, that is read within a :class:`Patience`."""

    def __init__(self, link: socket.socket, patience: Patience) -> None:
        self._link, self._patience = link, patience
        self.sendall, self.close, self.settimeout = link.sendall, link.close, link.settimeout

    def makefile(self, _: str) -> IO[bytes]:
        return io.BufferedReader(_Heard(self._link, self._patience))


class _PlainConnection(HTTPConnection):
    def __init__(self, *arguments: Any, patience: Patience, **options: Any) -> None:  # noqa: ANN401 - as the base's
        super().__init__(*arguments, **options)
        self._patience = patience

    def connect(self) -> None:
        super().connect()
        self.sock: Any = _Link(self.sock, self._patience)


class _SecureConnection(_PlainConnection, HTTPSConnection):
    """The same over HTTPS."""


class _Plain(HTTPHandler):
    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self._connection = partial(_PlainConnection, patience=patience)

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connection, req)


class _Secure(HTTPSHandler):
    def __init__(self, patience: Patience, tls: ssl.SSLContext | None) -> None:
        super().__init__(context=tls)
        self._connection = partial(_SecureConnection, context=tls, patience=patience)

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connection, req)


class _NoRedirects(HTTPRedirectHandler):
    def http_error_302(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> None:
        """Treat a redirect as an error, like any other status that is no answer."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Redirects(HTTPRedirectHandler):
    def http_error_302(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:  # noqa: ANN401 - urllib's own
        """Follow without reading the redirect's body, which could be endless."""
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Follow only with the same scheme, and over plain HTTP only to this machine."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != old.scheme or (new.scheme == "http" and not is_loopback(new.hostname or "")):
            raise BlobUnreachableError(f"{req.full_url[:200]} redirects to {newurl[:200]!r}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
