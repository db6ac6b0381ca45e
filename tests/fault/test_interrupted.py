"""Ctrl-C ends a coordinator in seconds, whatever it waits for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from coordinator.store.opening import open_store
from tests.support.broker import Mosquitto, mosquitto_broker
from tests.support.light_model import light_task

SECONDS = 10.0  # of which a broker that is there and mute takes seven
_START_S = 60.0
_BUSY = """
import time
from tests.support.light_model import install
install().prepare = lambda *_, **__: time.sleep(600)
from coordinator.cli import main
main()
"""


@contextmanager
def serving(folder: Path, broker: str, *program: str) -> Iterator[subprocess.Popen[str]]:
    """`coordinator serve` on ``broker``."""
    command = [sys.executable, *(program or ("-m", "coordinator.cli")), "serve", "--broker", broker]
    with subprocess.Popen([*command, "--state-dir", str(folder)], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupted(process: subprocess.Popen[str]) -> float:
    """How long it goes on after Ctrl-C, in seconds."""
    process.send_signal(signal.SIGINT)
    began_s = time.monotonic()
    process.wait(_START_S)
    return time.monotonic() - began_s


def wait_for_subscription(broker: Mosquitto) -> None:
    """Until a coordinator is there, and knows it."""
    give_up_s = time.monotonic() + _START_S
    while "Sending SUBACK to default-coordinator" not in broker._log.read_text():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


@pytest.mark.mosquitto
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_coordinator_ends_whatever_its_broker_does(tmp_path: Path, fate: signal.Signals) -> None:
    with mosquitto_broker(lines=["log_type all"]) as broker, serving(tmp_path, str(broker.address)) as process:
        wait_for_subscription(broker)
        os.kill(broker.process_id, fate)
        time.sleep(0.3)
        assert process.poll() is None
        assert interrupted(process) <= SECONDS
    assert process.returncode == 0


def test_coordinator_ends_while_it_waits_for_a_broker_that_is_mute(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, serving(tmp_path, _address(mute)) as process:
        mute.settimeout(_START_S)
        with mute.accept()[0]:
            assert interrupted(process) <= SECONDS
        assert process.stderr is not None
        assert "no MQTT answer" in process.stderr.read()


@pytest.mark.mosquitto
def test_coordinator_ends_in_the_middle_of_heavy_work(tmp_path: Path) -> None:
    task, store = light_task(tmp_path), open_store(tmp_path)
    with store.transaction() as tx:
        tx.tasks.add(task.name, msgspec.json.encode(task), 0.0)
    store.close()
    with mosquitto_broker() as broker, serving(tmp_path, str(broker.address), "-c", _BUSY) as process:
        assert process.stderr is not None
        assert "begins" in process.stderr.readline()
        time.sleep(0.3)
        assert interrupted(process) <= SECONDS
    assert process.returncode == 0


def _address(listener: socket.socket) -> str:
    return f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
