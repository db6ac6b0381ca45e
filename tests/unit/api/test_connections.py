"""Strangers who send without end, or nothing, or read nothing, hold neither memory nor a place."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from coordinator.api import connections
from coordinator.api.connections import MAX_BODY_BYTES, Connection
from edge_sdk.disk import raise_file_limit

LARGE = b"x" * (8 << 20)
ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Connect = Callable[..., socket.socket]


async def answer(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
    """A page; /slow takes a second, /large does not fit into what the system buffers."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    body = LARGE if scope["path"] == "/large" else b"page"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def served() -> Iterator[uvicorn.Server]:
    settings = {"log_config": None, "lifespan": "off", "timeout_keep_alive": 600, "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(answer, http=Connection, **settings))
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server.config.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield server
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def connect(served: uvicorn.Server) -> Iterator[Connect]:
    with ExitStack() as stack:

        def connected(said: bytes = b"", path: str = "/") -> socket.socket:
            made = stack.enter_context(socket.socket())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.settimeout(5)
            made.connect(("127.0.0.1", served.config.port))
            made.sendall(said.replace(b"/ ", f"{path} ".encode(), 1))
            return made

        yield connected


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE_S", 0.3)


def is_ended(connection: socket.socket, within_s: float = 5) -> bool:
    connection.settimeout(within_s)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(ASKED[:-2], id="half-a-head"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", id="half-a-body"),
        pytest.param(ASKED, id="one-request"),
        pytest.param(ASKED + ASKED[:-2], id="one-request-and-a-half"),
    ],
)
def test_connection_of_which_nothing_comes_is_ended(connect: Connect, said: bytes) -> None:
    assert is_ended(connect(said))


@pytest.mark.usefixtures("impatient")
def test_who_trickles_is_ended_too(connect: Connect) -> None:
    stranger = connect()
    with pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012 - which byte it is depends on the machine
        for _ in range(100):
            stranger.sendall(b"G")
            time.sleep(0.05)


@pytest.mark.usefixtures("impatient")
def test_answer_that_takes_long_comes(connect: Connect) -> None:
    assert connect(ASKED, "/slow").recv(4096).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.usefixtures("impatient")
def test_answer_may_be_read_slowly_and_is_given_up_where_nobody_does(
    monkeypatch: pytest.MonkeyPatch, served: uvicorn.Server, connect: Connect
) -> None:
    monkeypatch.setattr(connections, "READING_S", 1.5)
    began_s, _ = time.monotonic(), connect(ASKED, "/large")
    while not served.server_state.connections:
        time.sleep(0.01)
    while served.server_state.connections and time.monotonic() < began_s + 10:
        time.sleep(0.05)
    assert 1.5 < time.monotonic() - began_s < 5


def test_newest_takes_the_place_of_who_has_waited_longest(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    working = connect(ASKED, "/slow")
    idle = [connect() for _ in range(2)]
    time.sleep(0.2)
    assert connect(ASKED).recv(4096).startswith(b"HTTP/1.1 200 OK")
    assert [is_ended(each, 0.2) for each in (working, *idle)] == [False, True, False]


def test_so_many_connections_leave_half_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert connections._most_connections() == 128
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    assert connections._most_connections() == connections.MAX_CONNECTIONS
    asked = list[object]()
    monkeypatch.setattr(resource, "setrlimit", lambda *words: asked.append(words))
    raise_file_limit()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    raise_file_limit()
    assert asked == [(resource.RLIMIT_NOFILE, (65536, resource.RLIM_INFINITY))]


@pytest.mark.parametrize("path", ["/api/v1/tokens", "/api/v1/tasks", "/api/v1/releases/1/approve", "/api/v1/root"])
def test_body_without_end_is_not_read_to_its_end_whoever_sends_it(client: TestClient, path: str) -> None:
    as_json = {"Content-Type": "application/json"}
    answered = client.post(path, content=b" " * (MAX_BODY_BYTES + 1), headers=as_json)
    assert answered.status_code == 413
    assert answered.json() == {"error": f"a request body has at most {MAX_BODY_BYTES} bytes: send less"}
    assert client.post(path, content=b" " * (MAX_BODY_BYTES - 2) + b"{}", headers=as_json).status_code == 401
