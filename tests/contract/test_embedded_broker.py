"""The embedded broker as a process: its port, its log, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from coordinator import broker as module
from coordinator.broker import EmbeddedBroker
from edge_sdk.errors import BrokerUnreachableError, PortInUseError
from tests.support.broker import free_port, listens


def test_close_ends_the_process_within_two_seconds(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        assert broker.is_running
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 2
    assert not broker.is_running
    assert not listens(broker.address)
    broker.close()


def test_frozen_broker_is_ended_within_two_seconds(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    os.kill(broker.process_id, signal.SIGSTOP)
    start_s = time.monotonic()
    broker.close()
    assert time.monotonic() - start_s < 2


def test_broker_listens_on_loopback_alone(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        listening = [c.laddr.ip for c in psutil.Process(broker.process_id).net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


def test_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port}"):
            EmbeddedBroker(tmp_path, port)


def test_given_port_is_used_and_free_again_afterwards(tmp_path: Path) -> None:
    port = free_port()
    for _ in range(2):
        with EmbeddedBroker(tmp_path, port) as broker:
            assert broker.address.port == port


def test_broker_that_cannot_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONFIGURATION", "id = 'not a number' # {port}")
    with pytest.raises(BrokerUnreachableError, match=r"did not start at .*expected an integer") as caught:
        EmbeddedBroker(tmp_path)
    assert "\n" not in str(caught.value)


def test_broker_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from coordinator.broker import EmbeddedBroker\n"
        "print(EmbeddedBroker(Path(sys.argv[1])).process_id, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
    child.wait(timeout=2)
