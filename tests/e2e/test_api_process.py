"""`coordinator api` as an operator runs it: a real process, over TLS and without."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from typer.testing import CliRunner

from coordinator.api.access import make_token
from coordinator.api.app import create_app
from coordinator.api.serving import Listening, serve_api
from coordinator.cli import app
from coordinator.fleet.folder import Fleet, FleetSettings, init_fleet
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.states import AccessRole
from edge_sdk.errors import ConfigurationError, PortInUseError, StateInUseError
from tests.support.authority import Authority

PATIENCE_S = 60.0


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def serving(state: Path, *options: object) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    port = free_port()
    words = ("api", "--state-dir", state, "--port", port, *options)
    command = [sys.executable, "-m", "coordinator.cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield port, process
        finally:
            process.kill()


def ask(address: str, token: str = "", tls: ssl.SSLContext | bool = True) -> tuple[int, object]:
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        with suppress(httpx.TransportError):
            answer = httpx.get(address, headers={"Authorization": f"Bearer {token}"} if token else {}, verify=tls)
            return answer.status_code, answer.json()
        time.sleep(0.1)
    raise AssertionError(f"nobody answers at {address}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(tmp_path / "state")) as opened:
        yield opened


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_token_lets_in_and_a_signal_ends_it_whoever_is_there(
    store: Store, tmp_path: Path, number: signal.Signals
) -> None:
    token = make_token(store, "page", AccessRole.VIEWER, 1, time.time(), "a test")
    with serving(tmp_path / "state", "--log-format", "json") as (port, process):
        base = f"http://127.0.0.1:{port}"
        assert ask(f"{base}/health") == (200, {"status": "ok"})
        assert ask(f"{base}/api/v1/tasks", token) == (200, {"items": [], "after": None})
        status, answer = ask(f"{base}/api/v1/tokens", token)
        assert (status, answer) == (403, {"error": "token 'page' has the role viewer; this needs admin"})
        with pytest.raises(PortInUseError, match=f"127.0.0.1:{port} is in use: stop the process that listens there"):
            serve_api(create_app(store), Listening(port=port))
        with (
            socket.create_connection(("127.0.0.1", port)) as idle,
            socket.create_connection(("127.0.0.1", port)) as half,
        ):
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in idle.recv(4096)
            half.sendall(b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
            process.send_signal(number)
            said, _ = process.communicate(timeout=10)
        assert process.returncode == 0, said
        messages = [json.loads(line)["message"] for line in said.splitlines()]
        assert messages[0].startswith(f"API at {base}/api/v1")
        assert messages[-1] == "the API has ended"
        assert token not in said


def test_strangers_who_say_nothing_keep_nobody_out(tmp_path: Path) -> None:
    with serving(tmp_path / "state") as (port, process), ExitStack() as strangers:
        assert ask(f"http://127.0.0.1:{port}/health")[0] == 200
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE, (400, 400))
        for _ in range(600):
            stranger = strangers.enter_context(socket.create_connection(("127.0.0.1", port)))
            with suppress(OSError):  # it may have been ended for a later one
                stranger.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200


def test_what_is_typed_is_in_the_audit_log(tmp_path: Path) -> None:
    def typed(*words: str) -> str:
        return CliRunner().invoke(app, [*words, "--state-dir", str(tmp_path)], catch_exceptions=False).stdout

    assert typed("token", "create", "page", "--days", "1").startswith("raffm_")
    (row,) = json.loads(typed("token", "list", "--json"))
    assert (row["token"], row["role"], row["good_for_days"]) == ("page", "viewer", 1.0)
    typed("token", "revoke", "page")
    rows = json.loads(typed("audit", "--json"))
    assert [row["action"] for row in rows] == ["revoke token", "create viewer token"]
    assert all(row["who"].endswith(", command line") for row in rows)


@pytest.mark.long
def test_api_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.server()
    trusting = ssl.create_default_context(cafile=str(authority.ca_file))
    with serving(tmp_path / "state", "--certificate", certificate, "--key", key) as (port, _):
        assert ask(f"https://127.0.0.1:{port}/health", tls=trusting) == (200, {"status": "ok"})


@pytest.mark.parametrize("host", ["10.0.0.1", "fleet.example", "::"])
def test_plain_http_off_this_machine_is_refused_unless_allowed(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="tokens would cross the network in plain text"):
        Listening(host)
    Listening(host, allow_plaintext=True)
    with pytest.raises(ConfigurationError, match="there is no file"):
        Listening(host, certificate=tmp_path / "nothing.pem")


def test_certificate_that_cannot_be_shown_is_told_in_one_line(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).server()
    (tmp_path / "other").mkdir()
    _, other = Authority(tmp_path / "other").server()
    locked, garbled = tmp_path / "locked.key", tmp_path / "garbled.pem"
    secret = load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"abcd")))
    garbled.write_text("no certificate")
    Listening("::", certificate=certificate, key=key)
    for files in ((certificate, None), (certificate, other), (certificate, locked), (garbled, key)):
        with pytest.raises(ConfigurationError, match="give PEM files, the key unencrypted"):
            Listening("::", certificate=files[0], key=files[1])
    with pytest.raises(ConfigurationError, match="given without --certificate"):
        Listening.of(None, "127.0.0.1", None, None, key, allow_plaintext=False)


def test_api_listens_where_devices_are_told_that_it_does_and_says_so(tmp_path: Path) -> None:
    def listening(fleet: Fleet | None, host: str, port: int | None = None) -> Listening:
        return Listening.of(fleet, host, port, None, None, allow_plaintext=False)

    settings = FleetSettings(name="a", hosts=("fleet.example",), broker="mqtts://fleet.example:8883", api_port=9443)
    fleet = init_fleet(tmp_path, settings)
    for everywhere in ("0.0.0.0", "::"):  # noqa: S104 - nothing is bound
        assert listening(fleet, everywhere).address == fleet.settings.api == "https://fleet.example:9443"
    assert listening(fleet, "127.0.0.1").address == "https://127.0.0.1:9443"
    assert listening(fleet, "127.0.0.1", 8443).address == "https://127.0.0.1:8443"
    assert listening(None, "127.0.0.1").address == "http://127.0.0.1:8080"


@pytest.mark.usefixtures("store")
def test_store_does_not_move_from_under_an_api_that_writes_into_it(tmp_path: Path) -> None:
    state, there = tmp_path / "state", f"sqlite:///{tmp_path / 'there.sqlite'}"
    words = ["store", "move", there, "--state-dir", str(state)]
    with serving(state) as (port, _):
        ask(f"http://127.0.0.1:{port}/api/v1/tasks")
        refused = CliRunner().invoke(app, words)
        assert isinstance(refused.exception, StateInUseError)
        assert "such as `coordinator api`: stop it first" in str(refused.exception)
    assert CliRunner().invoke(app, words).exit_code == 0
