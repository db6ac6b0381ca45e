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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import pytest

from edge_sdk.transport.address import BrokerAddress

if TYPE_CHECKING:
    from coordinator.broker import EmbeddedBroker

_START_TIMEOUT_S = 10.0
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


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
    """The system's mosquitto with a configuration of its own.

    ``passwords`` is a ready password file, ``server`` the files of a certificate and its key for TLS, ``lines`` are
    further ones of the configuration, and ``files`` limits how many the broker may have open.
    """

    def __init__(
        self,
        binary: str,
        state_dir: Path,
        passwords: Path | None = None,
        server: tuple[Path, Path] | None = None,
        lines: Sequence[str] = (),
        files: int | None = None,
    ) -> None:
        self._log, self._files = state_dir / "mosquitto.log", files
        self.address = BrokerAddress("127.0.0.1", free_port(), tls=server is not None)
        lines = [f"listener {self.address.port} 127.0.0.1", "persistence false", "user root", *lines]
        lines += [f"password_file {passwords}"] if passwords else ["allow_anonymous true"]
        lines += [f"certfile {server[0]}", f"keyfile {server[1]}"] if server else []
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
        if self._files is not None:
            psutil.Process(self._process.pid).rlimit(psutil.RLIMIT_NOFILE, (self._files, self._files))
        _wait_until_it_listens(self.address, self._process, self._log)


class ConfiguredMosquitto(Mosquitto):
    """The system's mosquitto with a configuration that somebody else has written, for ``address``."""

    def __init__(self, configuration: Path, address: BrokerAddress) -> None:
        binary = shutil.which("mosquitto", path=_PATH)
        if binary is None:
            pytest.skip("mosquitto is not installed")
        self.address, self._files, self._log = address, None, configuration.with_name("mosquitto.log")
        self._command = [binary, "-c", str(configuration)]
        self.restart()

    @property
    def said(self) -> str:
        """Its log."""
        return self._log.read_text()


class Nats:
    """NATS, which speaks MQTT 3.1.1 alone; it keeps what is retained in a folder, which goes with each start."""

    def __init__(self, binary: str, state_dir: Path) -> None:
        self._binary, self._state_dir = binary, state_dir
        self.address = BrokerAddress("127.0.0.1", free_port())
        self._own_port = free_port()
        self.restart()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        store = self._state_dir / "store"
        shutil.rmtree(store, ignore_errors=True)
        configuration = self._state_dir / "nats.conf"
        configuration.write_text(
            f'server_name: test\nlisten: "127.0.0.1:{self._own_port}"\njetstream {{ store_dir: "{store}" }}\n'
            f'mqtt {{ listen: "127.0.0.1:{self.address.port}" }}\n'
        )
        with (self._state_dir / "nats.log").open("ab") as log:
            self._process = subprocess.Popen([self._binary, "-c", str(configuration)], stdout=log, stderr=log)
        _wait_until_it_listens(self.address, self._process, self._state_dir / "nats.log")


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
def mosquitto_broker(users: dict[str, str] | None = None, **settings: Any) -> Iterator[Mosquitto]:
    """A running mosquitto, open or with ``users`` as names and passwords; the test is skipped where there is none.

    ``settings`` are :class:`Mosquitto`'s.
    """
    binary = shutil.which("mosquitto", path=_PATH)
    if binary is None:
        pytest.skip("mosquitto is not installed")
    with tempfile.TemporaryDirectory() as folder:
        broker = Mosquitto(binary, Path(folder), _password_file(Path(folder), users) if users else None, **settings)
        try:
            yield broker
        finally:
            broker.kill()


@contextmanager
def nats_broker() -> Iterator[Nats]:
    """A running NATS server; the test is skipped where there is none."""
    binary = shutil.which("nats-server", path=_PATH)
    if binary is None:
        pytest.skip("nats-server is not installed")
    with tempfile.TemporaryDirectory() as folder:
        broker = Nats(binary, Path(folder))
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


def _wait_until_it_listens(address: BrokerAddress, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_s = time.monotonic() + _START_TIMEOUT_S
    while not listens(address):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up_s, log.read_text()
        time.sleep(0.02)


def _embedded(state_dir: Path, port: int | None = None) -> EmbeddedBroker:
    from coordinator.broker import EmbeddedBroker

    return EmbeddedBroker(state_dir) if port is None else EmbeddedBroker(state_dir, port)


def _password_file(folder: Path, users: dict[str, str]) -> Path:
    path = folder / "passwords"
    path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
    subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True)
    return path
