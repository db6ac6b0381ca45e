"""Blobs from a web server or S3: over HTTPS, resumed by range requests, verified by digest like any other.

A device's other requests to a coordinator, by :func:`ask`, go the same way, but follow no redirects.

    https://…    the certificate is verified; redirects stay on HTTPS
    http://…     only on this machine

Bytes are stored in the same partial files as the exchange's, so that either can resume where the other stopped. The
size is known beforehand, and a server that reports another one is refused.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from edge_sdk.decoding import UNDECODABLE, brief
from edge_sdk.errors import (
    BlobUnreachableError,
    ConfigurationError,
    CoordinatorUnreachableError,
    MalformedMessageError,
    RaffmError,
    UntrustedError,
)
from edge_sdk.protocol.blobs import ranges_of
from edge_sdk.protocol.messages import GRAIN_BYTES
from edge_sdk.transport.address import is_loopback, tls_context, trust_authorities
from edge_sdk.transport.blob_folder import Partial

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.request import OpenerDirector

_CONNECT_S = 20.0
_LONGEST_GRAIN_S = _LONGEST_ANSWER_S = 60.0
_MAX_QUOTED = 500  # characters
_VISIBLE_ASCII = re.compile(r"[!-~]+")
_SAY_EVERY_S = 0.5
_OK, _PARTIAL_CONTENT, _TOO_MANY, _SERVER_FAILS = 200, 206, 429, 500
_RANGE, _LENGTH = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})"), re.compile(r"\d{1,18}")


@dataclass(frozen=True, slots=True)
class WebArrived:
    """``size_bytes`` of blobs have arrived."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class WebEnded:
    """``fetch`` has ended: without an ``error`` the blob is complete and verified."""

    fetch: WebFetch
    error: RaffmError | None = None


def check_address(address: str) -> str:
    """``address`` itself; ``ConfigurationError`` if it is neither HTTPS nor HTTP on this machine."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigurationError(f"web address {address!r} cannot be read ({error}): use https://host/path") from error
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    if not (host and is_safe and _VISIBLE_ASCII.fullmatch(address)):
        raise ConfigurationError(f"web address {address!r} is not usable: use https://, or http:// on this machine")
    return address


class WebFetch:
    """Fetches one blob into ``partial``, on a thread of its own, on which ``say`` is called with events.

    After :meth:`stop`, nothing is written any more, and ``say`` is not called.
    """

    def __init__(
        self, partial: Partial, address: str, ca_file: Path | None, say: Callable[[WebArrived | WebEnded], None]
    ) -> None:
        self.digest, self.size_bytes = partial.digest, partial.size_bytes
        self._partial, self._address, self._ca_file, self._say = partial, address, ca_file, say
        self._lock = threading.Lock()
        self._stopped = False
        self._unsaid_bytes, self._said_s = 0, time.monotonic()
        threading.Thread(target=self._run, name=f"web-{self.digest[:8]}", daemon=True).start()

    def stop(self) -> None:
        """Keep what has arrived, and end soon."""
        with self._lock:
            self._stopped = True
            self._partial.close()

    def _run(self) -> None:
        error: RaffmError | None = None
        try:
            self._fetch_all()
        except RaffmError as refused:
            error = refused
        with self._lock:
            if not self._stopped:
                self._partial.close()
                self._say_bytes()
                self._say(WebEnded(self, error))

    def _fetch_all(self) -> None:
        # an agent that gets no web addresses does not pay for these
        from http.client import HTTPException  # noqa: PLC0415
        from urllib.error import HTTPError  # noqa: PLC0415

        from edge_sdk.transport.http_client import Patience, opener  # noqa: PLC0415

        self._patience, address = Patience(_LONGEST_GRAIN_S), check_address(self._address)
        tls = _tls_of(self._ca_file) if address.startswith("https:") else None
        web = opener(address, tls, self._patience, follows=True)
        while lacking := self._first_lacking():
            before = lacking[0]
            try:
                self._fetch_range(web, *lacking)
            except (OSError, HTTPException, ValueError) as error:  # the last for an address to follow that is none
                if isinstance(error, HTTPError):
                    error.close()
                still = self._first_lacking()
                if still is not None and still[0] == before:
                    raise BlobUnreachableError(f"{self._address} does not serve the blob: {brief(error)}") from error
        with self._lock:
            if not self._stopped:
                self._partial.commit()

    def _first_lacking(self) -> tuple[int, int] | None:
        with self._lock:
            if self._stopped:
                return None
            return next(ranges_of(self._partial.missing(), self.size_bytes), None)

    def _fetch_range(self, web: OpenerDirector, start: int, stop: int) -> None:
        from urllib.request import Request  # noqa: PLC0415

        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        self._patience.begin()
        with web.open(Request(self._address, headers=headers), timeout=_CONNECT_S) as response:  # noqa: S310 checked
            offset = self._first_byte(response, start)
            while offset < stop:
                self._patience.begin()
                data = _read(response, min(GRAIN_BYTES, stop - offset))
                if not self._store(offset, data):
                    return
                offset += len(data)

    def _first_byte(self, response: HTTPResponse, start: int) -> int:
        """The offset of the answer's first byte: ``start``, or 0 if the server does not support ranges."""
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        length = _LENGTH.fullmatch(response.headers.get("Content-Length", ""))
        first, size_bytes = 0, int(length[0]) if length else None
        if response.status == _PARTIAL_CONTENT and found:
            first, size_bytes = int(found[1]), int(found[2])
        if size_bytes != self.size_bytes or first not in {0, start}:
            raise BlobUnreachableError(
                f"{self._address} has {size_bytes} bytes and begins at {first}; the blob has {self.size_bytes}"
            )
        return first

    def _store(self, offset: int, data: bytes) -> bool:
        with self._lock:
            if self._stopped:
                return False
            self._partial.write(offset, data)
            self._unsaid_bytes += len(data)
            if time.monotonic() - self._said_s > _SAY_EVERY_S:
                self._say_bytes()
        return True

    def _say_bytes(self) -> None:
        self._say(WebArrived(self._unsaid_bytes))
        self._unsaid_bytes, self._said_s = 0, time.monotonic()


def _read(response: HTTPResponse, size_bytes: int) -> bytes:
    """Exactly ``size_bytes`` bytes; ``ConnectionError`` if the answer ends before."""
    data = response.read(size_bytes)
    if len(data) < size_bytes:
        raise ConnectionError("the answer ended before its end")
    return data


def ask(
    address: str,
    tls: ssl.SSLContext,
    body: bytes | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
    *,
    max_bytes: int,
) -> bytes:
    """A coordinator's answer to one request, at most ``max_bytes``; with a ``body`` the request is a POST.

    Raises ``UntrustedError`` if ``tls`` does not trust the server, or if it refuses, with its own words;
    ``MalformedMessageError`` if the answer is longer, or not HTTP; and ``CoordinatorUnreachableError`` if nobody
    answers within a minute, or if the server says that it cannot answer now.
    """
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import URLError  # noqa: PLC0415

    try:
        code, answer = _exchange(check_address(address), tls, body, headers, max_bytes)
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UntrustedError(f"{address} is not trusted: {reason.verify_message.rstrip('.')}") from error
        words = str(reason)[:_MAX_QUOTED]
        raise CoordinatorUnreachableError(f"no coordinator can be reached at {address}: {words}") from error
    except (HTTPException, ValueError) as error:
        said = f"{type(error).__name__} {brief(error)}"
        raise MalformedMessageError(f"{address} does not answer as a coordinator does: {said}") from error
    if code != _OK:
        raise _refusal(address, code, answer)
    if len(answer) > max_bytes:
        raise MalformedMessageError(f"{address} answers with more than {max_bytes} bytes")
    return answer


def _exchange(
    address: str, tls: ssl.SSLContext, body: bytes | None, headers: Mapping[str, str], max_bytes: int
) -> tuple[int, bytes]:
    """The status and the body, of which at most ``max_bytes`` + 1 bytes are read."""
    from urllib.error import HTTPError  # noqa: PLC0415
    from urllib.request import Request  # noqa: PLC0415

    from edge_sdk.transport.http_client import Patience, opener  # noqa: PLC0415

    request = Request(address, body, dict(headers))  # noqa: S310 checked
    web = opener(address, tls, Patience(_LONGEST_ANSWER_S), follows=False)
    try:
        response = web.open(request, timeout=_CONNECT_S)
    except HTTPError as error:
        response = error
    with response:
        return response.status, response.read(max_bytes + 1)


class _Refusal(msgspec.Struct, frozen=True):
    """What a coordinator sends instead of an answer."""

    error: str


def _refusal(address: str, code: int, body: bytes) -> RaffmError:
    try:
        words = msgspec.json.decode(body, type=_Refusal).error[:_MAX_QUOTED]
    except UNDECODABLE:
        words = f"HTTP status {code}"
    if code >= _SERVER_FAILS or code == _TOO_MANY:
        return CoordinatorUnreachableError(f"{address} cannot answer now: {words}")
    return UntrustedError(f"{address} refuses: {words}")


def _tls_of(ca_file: Path | None) -> ssl.SSLContext:
    """A context that trusts the system's authorities and those in ``ca_file``, which the broker's certificate needs."""
    tls = tls_context(None)
    if ca_file is not None:
        trust_authorities(tls, ca_file)
    return tls
