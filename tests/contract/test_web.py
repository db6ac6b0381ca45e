"""Blobs from a web address: whole, resumed, refused, and from the coordinator where the web fails."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.agent.sources import BlobSources
from edge_sdk.config import AgentConfig
from edge_sdk.device.link import LinkSpeed
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import GRAIN_BYTES, BlobEntry, ChunkRequest, Failure, Part
from edge_sdk.transport import http_client
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import Failed, Fetched, Outcome
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from edge_sdk.transport.web import WebEnded, check_address
from tests.support.authority import Authority

DATA = os.urandom(10 * GRAIN_BYTES + 17)
DIGEST = digest_of(DATA)


class Server(ThreadingHTTPServer):
    """Serves ``data`` at every path; ``fault`` is what it does wrong. ``ranges`` are those that it was asked for."""

    daemon_threads = True

    def __init__(self, fault: str = "", data: bytes = DATA) -> None:
        self.fault, self.data, self.ranges, self.released = fault, data, list[str](), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/blobs/{DIGEST}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked, data, fault = self.headers["Range"], self.server.data, self.server.fault
        self.server.ranges.append(asked)
        if fault == "breaks off, then absent":
            fault = "breaks off" if len(self.server.ranges) == 1 else "absent"
        if fault.startswith("to "):
            self.send_response(302)
            self.send_header("Location", fault[3:])
            self.end_headers()
            return
        start, stop = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        part = data if fault == "no ranges" else data[start : stop + 1]
        self.send_response({"absent": 404, "no ranges": 200}.get(fault, 206))
        self.send_header("Content-Length", str(len(part)))
        if fault != "no ranges":
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.end_headers()
        if fault in {"breaks off", "stalls"}:
            part = part[: 3 * GRAIN_BYTES + 5 if fault == "breaks off" else 5]
        self.wfile.write(part)
        if fault == "stalls":
            self.server.released.wait(5)

    def log_message(self, *_: Any) -> None:
        pass


class Bytes:
    """What a device counts."""

    def __init__(self) -> None:
        self.link_speed, self.counted = LinkSpeed(), 0

    def transferred(self, size_bytes: int) -> None:
        self.counted += size_bytes


class Device:
    """A device's sources in a loop of their own; ``asked`` is what it asks its coordinator for."""

    def __init__(self, folder: Path, ca_file: Path | None = None, broker: str = "mqtt://127.0.0.1") -> None:
        self.folder, self.asked, self.machine = BlobFolder(folder), list[ChunkRequest](), Bytes()
        self.transport = MemoryTransport(MemoryHub(), ())
        self.sources = BlobSources(
            self.folder,
            self.asked.append,  # type: ignore[arg-type]
            self.transport,
            self.machine,  # type: ignore[arg-type]
            AgentConfig(device="pi", broker=broker, state_dir=folder, ca_file=ca_file),
        )

    def fetch(self, address: str | None, size_bytes: int = len(DATA)) -> list[Outcome]:
        entry = BlobEntry(part=Part.WEIGHTS, digest=DIGEST, size_bytes=size_bytes, address=address)
        return self.sources.fetch([entry])

    def run(self, done: Callable[[list[Outcome]], bool], timeout_s: float = 10) -> list[Outcome]:
        give_up_s, outcomes = time.monotonic() + timeout_s, list[Outcome]()
        while not done(outcomes):
            assert time.monotonic() < give_up_s, "timed out"
            event = self.transport.receive(0.01)
            if event is not None:
                outcomes += self.sources.handle(event)
        return outcomes

    def missing(self) -> int:
        with closing(self.folder.open_partial(DIGEST, len(DATA))) as partial:
            return len([*partial.missing()])


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "blobs")
    with closing(made.sources):
        yield made


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def served(*arguments: Any) -> Server:
        running.append(Server(*arguments))
        return running[-1]

    yield served
    for server in running:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("fault", ["", "no ranges", "breaks off"])
def test_blob_comes_from_the_web_whatever_the_server_does_with_ranges(
    device: Device, serve: Callable[..., Server], fault: str
) -> None:
    server = serve(fault)
    assert device.fetch(server.address) == []
    assert device.run(bool) == [Fetched("coordinator", DIGEST)]
    assert device.folder.path_of(DIGEST).read_bytes() == DATA
    assert device.asked == []
    assert device.machine.counted == device.sources.received_bytes == len(DATA)
    assert len(server.ranges) == (4 if fault == "breaks off" else 1), "each goes on where the last ended"
    assert device.sources.unfinished == ()


def test_coordinator_elsewhere_names_no_server_of_this_machine(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server, device = serve(), Device(tmp_path, broker="mqtts://broker.example")
    with closing(device.sources):
        device.fetch(server.address)
        assert {request.digest for request in device.asked} == {DIGEST}
    assert server.ranges == []


def test_only_what_is_missing_is_asked_of_the_web(device: Device, serve: Callable[..., Server]) -> None:
    with closing(device.folder.open_partial(DIGEST, len(DATA))) as partial:
        partial.write(0, DATA[: 4 * GRAIN_BYTES])
        partial.write(6 * GRAIN_BYTES, DATA[6 * GRAIN_BYTES : 8 * GRAIN_BYTES])
    server = serve()
    device.fetch(server.address)
    device.run(bool)
    assert server.ranges == [
        f"bytes={4 * GRAIN_BYTES}-{6 * GRAIN_BYTES - 1}",
        f"bytes={8 * GRAIN_BYTES}-{len(DATA) - 1}",
    ]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("absent", "404"),
        ("to https://elsewhere.example/", "redirects to"),
        ("to http://elsewhere.example/", "redirects to"),
        ("to file:///etc/passwd", "is not allowed"),
    ],
)
def test_coordinator_is_asked_where_the_web_has_no_blob(
    device: Device, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, fault: str, reason: str
) -> None:
    device.fetch(serve(fault).address)
    device.run(lambda _: bool(device.asked))
    assert device.asked[0].ranges[0][0] == 0
    assert "is fetched from the coordinator instead" in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"!", b""], ids=["short", "long", "empty"])
def test_blob_of_another_size_is_not_taken(
    device: Device, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    device.fetch(serve("", data).address)
    device.run(lambda _: bool(device.asked))
    assert device.machine.counted == 0
    assert f"the blob has {len(DATA)}" in caplog.text


def test_other_bytes_of_the_same_size_are_thrown_away_and_fetched_from_the_coordinator(
    device: Device, serve: Callable[..., Server]
) -> None:
    device.fetch(serve("", bytes(len(DATA))).address)
    device.run(lambda _: bool(device.asked))
    assert device.asked[0].ranges[0][0] == 0
    assert not device.folder.has(DIGEST)


@pytest.mark.parametrize("address", ["ftp://x/y", "http://example.com/x", "https://", "", "https://[x", "file:///x"])
def test_address_that_is_not_https_is_refused(device: Device, address: str) -> None:
    with pytest.raises(ConfigurationError, match="web address"):
        check_address(address)
    device.fetch(address)
    device.run(lambda _: bool(device.asked))


def test_what_came_before_the_web_broke_off_is_kept_for_the_coordinator(
    device: Device, serve: Callable[..., Server]
) -> None:
    device.fetch(serve("breaks off, then absent").address)
    device.run(lambda _: bool(device.asked))
    assert device.asked[0].ranges[0][0] == 3 * GRAIN_BYTES
    assert device.missing() == 8


def test_server_that_stalls_is_given_up(
    device: Device, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "SILENCE_S", 0.3)
    device.fetch(serve("stalls").address)
    device.run(lambda _: bool(device.asked), timeout_s=4)


def test_held_sources_stop_and_go_on_where_they_were(device: Device, serve: Callable[..., Server]) -> None:
    server = serve()
    device.sources.held = True
    assert device.fetch(server.address) == []
    time.sleep(0.1)
    assert server.ranges == []
    assert device.sources.unfinished == (DIGEST,)
    device.sources.held = False
    device.sources.resume()
    assert device.run(bool) == [Fetched("coordinator", DIGEST)]


@pytest.mark.parametrize("is_end_heard", [True, False])
def test_blob_whose_last_bytes_have_the_sources_held_is_not_fetched_again(
    device: Device, serve: Callable[..., Server], *, is_end_heard: bool
) -> None:
    """They may use up a day's budget of bytes, and would on every other day."""
    server = serve()
    device.fetch(server.address)
    said: object = None
    while not isinstance(said, WebEnded):
        said = device.transport.receive(5)
        assert said is not None
    device.sources.held = True
    outcomes = device.sources.handle(said) if is_end_heard else []
    device.sources.held = False
    outcomes += device.sources.resume()
    assert outcomes == [Fetched("coordinator", DIGEST)]
    assert (len(server.ranges), device.sources.unfinished) == (1, ())


def test_cancelled_fetch_says_nothing_and_writes_nothing_more(device: Device, serve: Callable[..., Server]) -> None:
    device.fetch(serve().address)
    device.sources.cancel(DIGEST)
    assert device.sources.unfinished == ()
    assert not any(device.sources.handle(event) for event in iter(lambda: device.transport.receive(0.3), None))


def test_authority_that_is_gone_since_the_start_leaves_the_blob_to_the_coordinator(tmp_path: Path) -> None:
    device = Device(tmp_path / "blobs", ca_file=tmp_path / "gone.pem")
    with closing(device.sources):
        device.fetch("https://127.0.0.1:1/blob")
        device.run(lambda _: bool(device.asked))


def test_full_disk_fails_the_fetch_with_its_reason(
    device: Device, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    server = serve()
    device.fetch(None)
    device.sources.cancel(DIGEST)
    device.asked.clear()
    monkeypatch.setattr(os, "pwrite", full)
    [failed] = device.fetch(server.address) or device.run(bool)
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.STORAGE
    assert device.asked == []


def test_https_is_verified_and_an_authority_of_ones_own_may_be_given(
    tmp_path: Path, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    authority, server = Authority(tmp_path), serve()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.server())
    server.socket = context.wrap_socket(server.socket, server_side=True)
    address = server.address.replace("http:", "https:")
    stranger, friend = Device(tmp_path / "stranger"), Device(tmp_path / "friend", authority.ca_file)
    with closing(stranger.sources), closing(friend.sources):
        stranger.fetch(address)
        stranger.run(lambda _: bool(stranger.asked))
        assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
        friend.fetch(address)
        assert friend.run(bool) == [Fetched("coordinator", DIGEST)]
