"""RabbitMQ with its MQTT plugin, which speaks 3.1.1 alone up to version 3.12; many fleets have one already."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_sdk.transport.address import BrokerAddress
from tests.support.broker import free_port, listens

_SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # Debian's own in PATH changes to another user
_START_TIMEOUT_S = 60.0


class RabbitMq:
    """A node of its own, with everything that it keeps in ``folder``. Erlang's port mapper runs beside it."""

    def __init__(self, folder: Path) -> None:
        self.address = BrokerAddress("127.0.0.1", free_port())
        self._folder, own, mapper = folder, free_port(), free_port()
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{free_port()}",
            "mqtt.listeners.tcp.1": f"127.0.0.1:{self.address.port}",
            "mqtt.allow_anonymous": "true",
            "distribution.listener.port_range.min": own,
            "distribution.listener.port_range.max": own,
        }
        (folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        (folder / "enabled").write_text("[rabbitmq_mqtt].")
        self._environment = os.environ | {
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper),
            "RABBITMQ_NODENAME": f"test{own}@localhost",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_LOGS": "-",
        }
        log = folder / "log"
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                [_SCRIPT], env=self._environment, stdout=said, stderr=said, start_new_session=True
            )
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        while not listens(self.address):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_s, log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """End the node, and Erlang's port mapper, which outlives it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        while subprocess.run(["epmd", "-kill"], env=self._environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < give_up_s, "the port mapper still knows the node"
            time.sleep(0.2)


@contextmanager
def rabbitmq_broker() -> Iterator[RabbitMq]:
    """A running RabbitMQ; the test is skipped where there is none."""
    if not _SCRIPT.exists():
        pytest.skip("rabbitmq-server is not installed")
    with tempfile.TemporaryDirectory() as folder:
        broker = RabbitMq(Path(folder))
        try:
            yield broker
        finally:
            broker.kill()
