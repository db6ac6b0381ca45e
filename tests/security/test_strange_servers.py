"""Servers of strangers: whatever they answer a device, and however slowly, it ends soon and by a named error.

What is read of an answer that comes at once is tried in :mod:`tests.security.test_parsers`.
"""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

import pytest

from coordinator.fleet.authority import Authority, new_key
from edge_sdk.errors import (
    BlobUnreachableError,
    ConfigurationError,
    CoordinatorUnreachableError,
    MalformedMessageError,
    RaffmError,
    UntrustedError,
)
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.security.enrolment import _authority, enroll
from edge_sdk.transport import web
from edge_sdk.transport.address import tls_context
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.web import WebEnded, WebFetch, ask
from tests.support.parsers.web import answer, chunked

WHOLE_S, SOON_S, MOST_BYTES = 0.25, 5.0, 16 * 1024
BLOB = bytes(range(256)) * 400
HEAD = b"HTTP/1.1 200 OK\r\n"
Talk = Callable[[], Iterator[bytes]]


def trickling(begin: bytes, again: bytes) -> Talk:
    """So much at once, and then a little now and then for as long as anybody listens."""
    return lambda: itertools.chain([begin], (again[at % len(again) :][:1] for at in itertools.count() if pause()))


def gushing(begin: bytes, again: bytes) -> Talk:
    """So much at once, and then without end."""
    return lambda: itertools.chain([begin], itertools.repeat(again))


def pause() -> bool:
    time.sleep(0.02)
    return True


@contextmanager
def server(talk: Talk) -> Iterator[str]:
    """Its address; whoever connects is told ``talk``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, talk), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, talk: Talk) -> None:
    with suppress(OSError):
        while True:
            link, _ = listener.accept()
            threading.Thread(target=_talk, args=(link, talk), daemon=True).start()


def _talk(link: socket.socket, talk: Talk) -> None:
    with link, suppress(OSError):
        link.recv(4096)
        for said in talk():
            link.sendall(said)
        link.shutdown(socket.SHUT_WR)
        while link.recv(4096):
            pass


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LONGEST_ANSWER_S", "_LONGEST_GRAIN_S"):
        monkeypatch.setattr(web, name, WHOLE_S)


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS: dict[str, Talk] = {
    "status": trickling(b"HTTP/1.1 200 ", b"x"),
    "head": trickling(HEAD, b"a: b\r\n"),
    "one field of it": trickling(HEAD + b"a: ", b"b"),
    "heads before the head": trickling(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "heads before the head, fast": gushing(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": trickling(HEAD + b"\r\n", b" "),
    "body of a refusal": trickling(b"HTTP/1.1 403 No\r\n\r\n", b" "),
    "sizes of chunks": trickling(CHUNKED, b"1;a=bbbbbbbbbbbbbbb"),
    "what follows the chunks": trickling(CHUNKED + b"2\r\n{}\r\n0\r\n", b"a: b\r\n"),
    "what follows the chunks, fast": gushing(CHUNKED + b"2\r\n{}\r\n0\r\n", b"a: b\r\n" * 100),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_answer_without_end_is_given_up_in_time(name: str) -> None:
    with server(ENDLESS[name]) as address:
        began_s = time.monotonic()
        with pytest.raises(CoordinatorUnreachableError, match="the response was not complete after"):
            ask(f"{address}/enroll", tls_context(None), b"{}", max_bytes=MOST_BYTES)
        assert time.monotonic() - began_s < SOON_S


def test_answer_that_comes_slowly_but_in_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(web, "_LONGEST_ANSWER_S", SOON_S)
    with server(lambda: (part for part in (HEAD, b"\r\n", b"{", b"}") if pause())) as address:
        assert ask(address, tls_context(None), max_bytes=MOST_BYTES) == b"{}"


@pytest.mark.parametrize("name", ["status", "head", "sizes of chunks"])
def test_server_of_a_blob_that_trickles_is_given_up_in_time(tmp_path: Path, name: str) -> None:
    ranged = {"Content_Range": f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}", "Transfer_Encoding": "chunked"}
    chunks = trickling(answer(b"", "206 Partial Content", **ranged), b"1;a=bbbbbbbbb")
    with server(chunks if name == "sizes of chunks" else ENDLESS[name]) as address:
        assert "the response was not complete after" in str(fetched(tmp_path, address))


def test_what_comes_with_a_redirect_is_not_read(tmp_path: Path) -> None:
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n"
    with server(gushing(redirect, b"x" * 65536)) as address:
        assert "infinite loop" in str(fetched(tmp_path, address))


def fetched(folder: Path, address: str) -> RaffmError | None:
    """What ended the fetch of a blob."""
    events, began_s = SimpleQueue[object](), time.monotonic()
    with closing(BlobFolder(folder).open_partial(digest_of(BLOB), len(BLOB))) as partial:
        WebFetch(partial, f"{address}/blob", None, events.put)
        while not isinstance(ended := events.get(timeout=10), WebEnded):
            pass
    assert time.monotonic() - began_s < SOON_S
    assert isinstance(ended.error, BlobUnreachableError)
    return ended.error


ANSWERS = {
    "nested deeply, in a refusal": (answer(b"[" * 12_000, "403 No"), UntrustedError, "HTTP status 403"),
    "no UTF-8, in a refusal": (answer(b'{"error": "\xff"}', "403 No"), UntrustedError, "HTTP status 403"),
    "words of another type": (answer(b'{"error": ["a"]}', "503 No"), CoordinatorUnreachableError, "HTTP status 503"),
    "words for the terminal": (answer(b'{"error": "\\u001b[2J\\n"}', "403 No"), UntrustedError, r"\\x1b\[2J\\n"),
    "chunks of no size": (
        answer(b"zz\r\n", "403 No", Transfer_Encoding="chunked"),
        MalformedMessageError,
        "IncompleteRead",
    ),
    "no HTTP": (b"\x1b[2J" * 10_000 + b"\r\n", MalformedMessageError, "BadStatusLine"),
    "moved": (answer(b"", "302 Found", Location="https://example.com/"), UntrustedError, "HTTP status 302"),
    "moved nowhere": (answer(b"", "302 Found", Location="https://[x"), UntrustedError, "HTTP status 302"),
    "too many fields": (HEAD + b"a: b\r\n" * 200, MalformedMessageError, "more than 100 headers"),
    "too much": (chunked(b" " * (MOST_BYTES + 1)), MalformedMessageError, "more than 16384 bytes"),
    "nothing": (b"", CoordinatorUnreachableError, "closed connection"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_strange_answer_is_one_named_error_of_one_line(name: str) -> None:
    said, error, words = ANSWERS[name]
    with server(lambda: iter([said])) as address, pytest.raises(error, match=words) as caught:
        ask(f"{address}/enroll", tls_context(None), b"{}", max_bytes=MOST_BYTES)
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


def test_second_authority_behind_the_one_that_is_known_is_not_trusted() -> None:
    """Base64 ends at its padding: what is read is the first, and a file of both would be trusted for both."""
    fleet, thief = (next(padded_authorities()) for _ in range(2))
    both = fleet.certificate_pem.strip() + b"\n" + thief.certificate_pem
    with server(lambda: iter([answer(both)])) as address:
        kept = _authority(address, None, fleet.fingerprint)
    context = ssl.create_default_context(cadata=kept.decode())
    assert [found["serialNumber"] for found in context.get_ca_certs()] == [serial_of(fleet)]


def padded_authorities() -> Iterator[Authority]:
    """Those whose certificate does not fill its last three bytes."""
    while True:
        made = Authority.create("default", new_key(), time.time())
        if b"=" in made.certificate_pem:
            yield made


def serial_of(authority: Authority) -> object:
    return ssl.create_default_context(cadata=authority.certificate_pem.decode()).get_ca_certs()[0]["serialNumber"]


def test_token_that_is_none_is_refused_and_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the token has characters that cannot be in a token") as caught:
        enroll("https://127.0.0.1:9", "secret\r\nX: y", "pi", tmp_path, ca_file=None, fingerprint=None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://a b/", "https://b\x1b[2J", "https://bücher.example", "https://a:b"])
def test_address_that_no_request_can_have_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="web address"):
        ask(address, tls_context(None), max_bytes=9)
