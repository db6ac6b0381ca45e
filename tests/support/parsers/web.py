"""What a device reads of web servers: a coordinator's answer to who wants to enrol, and a part of a blob."""

from __future__ import annotations

import io
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from threading import Thread
from unittest.mock import patch

import msgspec

from edge_sdk.errors import (
    BlobCorruptError,
    BlobUnreachableError,
    CoordinatorUnreachableError,
    MalformedMessageError,
    UntrustedError,
)
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.identity import Enrolled, Enrolment
from edge_sdk.security.enrolment import _enrolled
from edge_sdk.transport.address import tls_context
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.web import WebEnded, WebFetch
from tests.security import attacks
from tests.support import mutation
from tests.support.parsers.parser import Parser

_BLOB = Random(2).randbytes(3000)


class Wire:
    """A connection over which these bytes come, whatever is said."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object, **__: object) -> io.BytesIO:
        return io.BytesIO(self._data)

    def said(self, *_: object) -> None:
        """Whatever it is."""

    sendall = settimeout = setsockopt = close = said


@contextmanager
def everybody_says(data: bytes) -> Iterator[None]:
    """Whom this process connects to."""
    with patch.object(socket, "create_connection", lambda *_, **__: Wire(data)):
        yield


def answer(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """As a server writes it."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {said}" for name, said in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(body: bytes, trailer: bytes = b"") -> bytes:
    """In two parts, without its length beforehand."""
    parts = (body[:20], body[20:])
    whole = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return answer(whole + b"0\r\n" + trailer + b"\r\n", Transfer_Encoding="chunked")


def parsers(folder: Path) -> list[Parser]:
    """All of this room; files lie in ``folder``."""
    return [_enrolling(), _fetching(folder)]


def _enrolling() -> Parser:
    asked, tls = Enrolment(device="pi", request="a request"), tls_context(None)
    certificate = ssl.DER_cert_to_PEM_cert(Random(3).randbytes(300))
    told = Enrolled(certificate=certificate, broker="mqtts://host:8883", fleet="default", root="{}")
    body = msgspec.json.encode(told)

    def enrolled(data: bytes) -> object:
        with everybody_says(data):
            said = _enrolled("http://127.0.0.1:9", tls, "token", asked)
        return said.broker.encode("ascii", "backslashreplace"), said.root.encode()

    return Parser(
        "answer to who enrols",
        enrolled,
        (answer(body, Content_Length=str(len(body))), chunked(body), answer(body, Content_Type="application/json")),
        (CoordinatorUnreachableError, MalformedMessageError, UntrustedError),
        _of_bodies(mutation.json_or_torn),
        5,
        tuple(_hostile_answers()),
    )


def _hostile_answers() -> Iterator[bytes]:
    for bomb in attacks.JSON_BOMBS:
        yield answer(bomb)
        yield answer(bomb, "403 Forbidden")
        yield answer(b'{"error": ' + bomb + b"}", "503 Busy")
    yield answer(b'{"error": "\x1b[2J\\u001b[2J\\n"}', "403 \x1b[2J" + "x" * 60_000)
    yield answer(b"zz\r\n", "403 Forbidden", Transfer_Encoding="chunked")
    yield answer(b"", "302 Found", Location="https://[x")
    yield answer(b"", "302 Found", Location="file:///etc/passwd")
    yield answer(b" " * (1 << 20))
    yield answer(b"", Content_Length="9" * 5000)
    yield b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000
    yield b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000
    yield b"\x1b[2J" * 10_000 + b"\r\n"
    yield chunked(b"{}", b"a: b\r\n" * 100_000)


def _fetching(folder: Path) -> Parser:
    digest, size_bytes = digest_of(_BLOB), len(_BLOB)
    ranged = {"Content_Range": f"bytes 0-{size_bytes - 1}/{size_bytes}", "Content_Length": str(size_bytes)}

    def fetched(data: bytes) -> None:
        """Until it is whole, or given up by a named error; on this thread, of which the memory is limited."""
        events = list[object]()
        blobs, here = BlobFolder(folder / "blobs"), patch.object(Thread, "start", Thread.run)
        with everybody_says(data), here, closing(blobs.open_partial(digest, size_bytes)) as partial:
            WebFetch(partial, "http://127.0.0.1:9/blob", None, events.append)
        ended = events[-1]
        assert isinstance(ended, WebEnded)
        assert blobs.has(digest) is (ended.error is None)
        shutil.rmtree(folder / "blobs")
        if ended.error is not None:
            raise ended.error

    return Parser(
        "blob of a web server",
        fetched,
        (answer(_BLOB, "206 Partial Content", **ranged), answer(_BLOB, Content_Length=str(size_bytes))),
        (BlobCorruptError, BlobUnreachableError),
        weight=2,
        attacks=(
            answer(_BLOB, "206 Partial Content", Content_Range="bytes 0-1/" + "9" * 5000),
            answer(_BLOB, Content_Length="9" * 5000),
            answer(b"", "404 " + "\x1b[2J" * 10_000),
            answer(b"x" * 100_000, "302 Found", Location="http://127.0.0.1/" + "x" * 50_000),
            answer(b"", "302 Found", Location="https://[x"),
        ),
    )


def _of_bodies(mutate: mutation.Mutate) -> Callable[[bytes, Random], bytes]:
    """What lies in the body, or in its head."""

    def mutated(data: bytes, chance: Random) -> bytes:
        head, blank, body = data.partition(b"\r\n\r\n")
        if b"Content-Length" in head or chance.random() < 0.3:
            return mutation.torn(data, chance)
        return head + blank + mutate(body, chance)

    return mutated
