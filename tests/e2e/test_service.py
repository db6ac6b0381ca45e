"""`edge-agent run` as systemd starts it: settings from a file, word to the manager, a clean end on SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.broker import Broker

STOP_S = 30  # TimeoutStopSec= of the unit


def settings(folder: Path, broker: Broker) -> Path:
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"some text {i},{'xy'[i % 2]}\n" for i in range(20)))
    path = folder / "agent.toml"
    path.write_text(f'device = "pi"\nbroker = "{broker.address}"\ndata = "texts.csv"\nstate_dir = "state"\n')
    return path


def next_of(manager: socket.socket, line: str) -> None:
    """Wait until the manager hears ``line``; the socket's timeout ends it."""
    while line not in manager.recv(4096).decode().splitlines():
        pass


def test_agent_is_ready_once_connected_pings_and_ends_cleanly(embedded_broker: Broker, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        agent = subprocess.Popen(
            [sys.executable, "-m", "edge_sdk.cli", "run", "--config", settings(tmp_path, embedded_broker)],
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"},
        )
        try:
            next_of(manager, "READY=1")
            next_of(manager, "WATCHDOG=1")
            agent.send_signal(signal.SIGTERM)
            next_of(manager, "STOPPING=1")
            assert agent.wait(STOP_S) == 0
        finally:
            agent.kill()
            agent.wait()
    assert (tmp_path / "state" / "outbox.sqlite").exists()
