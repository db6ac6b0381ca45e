"""Real brokers for tests, each a process on a free loopback port that ends by its process id.

``kill`` and ``restart`` are what the fault tests need: the same port, as after a crash, and nothing kept.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from edge_sdk.transport.address import BrokerAddress

if TYPE_CHECKING:
    from coordinator.broker import EmbeddedBroker

_START_TIMEOUT_S = 10.0


class Broker(Protocol):
    """A broker that a test may kill and start again."""

    address: BrokerAddress

    @property
    def process_id(self) -> int: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...


class Iotcore:
    """The embedded broker."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._broker = _embedded(state_dir)
        self.address = self._broker.address

    @property
    def process_id(self) -> int:
        return self._broker.process_id

    def kill(self) -> None:
        os.kill(self.process_id, signal.SIGKILL)
        self._broker.close()

    def restart(self) -> None:
        self._broker = _embedded(self._state_dir, self.address.port)


class Mosquitto:
    """The system's mosquitto with a configuration of its own; ``passwords`` is a ready password file."""

    def __init__(self, binary: str, state_dir: Path, passwords: Path | None = None) -> None:
        self._log = state_dir / "mosquitto.log"
        self.address = BrokerAddress("127.0.0.1", free_port())
        lines = [f"listener {self.address.port} 127.0.0.1", "persistence false", "user root"]
        lines += [f"password_file {passwords}"] if passwords else ["allow_anonymous true"]
        configuration = state_dir / "mosquitto.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._command = [binary, "-c", str(configuration)]
        self.restart()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        while not listens(self.address):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < give_up_s, self._log.read_text()
            time.sleep(0.02)


@contextmanager
def iotcore_broker() -> Iterator[Iotcore]:
    """A running embedded broker."""
    with tempfile.TemporaryDirectory() as folder:
        broker = Iotcore(Path(folder))
        try:
            yield broker
        finally:
            broker._broker.close()


@contextmanager
def mosquitto_broker(users: dict[str, str] | None = None) -> Iterator[Mosquitto]:
    """A running mosquitto, open or with ``users`` as names and passwords; the test is skipped where there is none."""
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if binary is None:
        pytest.skip("mosquitto is not installed")
    with tempfile.TemporaryDirectory() as folder:
        broker = Mosquitto(binary, Path(folder), _password_file(Path(folder), users) if users else None)
        try:
            yield broker
        finally:
            broker.kill()


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(address: BrokerAddress) -> bool:
    """Whether something accepts connections at ``address``."""
    with socket.socket() as probe:
        return probe.connect_ex((address.host, address.port)) == 0


def peak_memory_bytes(process_id: int) -> int:
    """The most memory that a process has held so far (VmHWM)."""
    status = Path(f"/proc/{process_id}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _embedded(state_dir: Path, port: int | None = None) -> EmbeddedBroker:
    from coordinator.broker import EmbeddedBroker

    return EmbeddedBroker(state_dir) if port is None else EmbeddedBroker(state_dir, port)


def _password_file(folder: Path, users: dict[str, str]) -> Path:
    path = folder / "passwords"
    path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
    subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True)
    return path
