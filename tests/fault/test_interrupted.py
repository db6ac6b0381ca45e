"""Ctrl-C and SIGTERM end a coordinator in seconds, whatever it waits for, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from coordinator.config import TaskConfig
from coordinator.store.database import Store, Transaction
from coordinator.store.opening import open_store
from coordinator.store.states import TaskStatus
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.topics import coordinator_name
from edge_sdk.transport.base import Will
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import Broker, Mosquitto, mosquitto_broker
from tests.support.light_model import light_task
from tests.support.simulator import Answer, Fleet, small_update

SECONDS = 10.0  # of which a broker that is there and mute takes seven
_START_S = 60.0
_LIGHT = """
from tests.support.light_model import install
from coordinator.cli import main
run = install()
{}
main()
"""
_BUSY = _LIGHT.format("import time; run.prepare = lambda *_, **__: time.sleep(600)")


@contextmanager
def serving(folder: Path, broker: str, *program: str) -> Iterator[subprocess.Popen[str]]:
    """`coordinator serve` on ``broker``."""
    command = [sys.executable, *(program or ("-m", "coordinator.cli")), "serve", "--broker", broker]
    command += ["--log-format", "json"]
    with subprocess.Popen([*command, "--state-dir", str(folder)], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupted(process: subprocess.Popen[str], how: signal.Signals = signal.SIGINT) -> float:
    """How long it goes on after Ctrl-C, in seconds."""
    process.send_signal(how)
    began_s = time.monotonic()
    process.wait(_START_S)
    return time.monotonic() - began_s


def wait_for_subscription(broker: Mosquitto) -> None:
    """Until a coordinator is there, and knows it."""
    give_up_s = time.monotonic() + _START_S
    while f"Sending SUBACK to {coordinator_name('default')}" not in broker._log.read_text():
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
    queue(tmp_path, light_task(tmp_path)).close()
    with mosquitto_broker() as broker, serving(tmp_path, str(broker.address), "-c", _BUSY) as process:
        assert process.stderr is not None
        assert any("task" in line and "starts" in line for line in process.stderr)
        time.sleep(0.3)
        assert interrupted(process) <= SECONDS
    assert process.returncode == 0


def test_coordinator_ended_in_a_round_goes_on_with_all_that_it_had(tmp_path: Path, embedded_broker: Broker) -> None:
    held, devices = {"device-2"}, [f"device-{number}" for number in range(3)]

    def work(device: str, offer: Offer, weights: bytes) -> Answer:
        return None if device in held else small_update(device, offer, weights)

    def link(name: str, filters: Sequence[str], will: Will) -> MqttTransport:
        return MqttTransport(embedded_broker.address, name, filters, will=will)

    task, broker, program = light_task(tmp_path, "news"), str(embedded_broker.address), ("-c", _LIGHT.format(""))
    with closing(queue(tmp_path, task)) as store, Fleet(devices, link, work=work):
        with serving(tmp_path, broker, *program) as process:
            wait_for(process, lambda tx: len(tx.updates.of_round("news", 1)) == 2, store)
            assert interrupted(process, signal.SIGTERM) <= SECONDS
            lines = [json.loads(line) for line in process.stderr or ()]
        assert process.returncode == 0, lines
        assert lines[-1]["message"] == "the coordinator has ended"
        assert {(it.get("task"), it.get("round")) for it in lines if it["message"].startswith("round")} == {("news", 1)}
        assert {it["device"] for it in lines if "is online" in it["message"]} == set(devices)
        held.clear()
        with serving(tmp_path, broker, *program) as process:
            wait_for(process, lambda tx: tx.tasks.all()[0].status is TaskStatus.DONE, store)
        with store.reading() as tx:
            assert [len(tx.updates.accepted("news", number)) for number in (1, 2)] == [3, 3]


def queue(folder: Path, task: TaskConfig) -> Store:
    """The store of ``folder``, where ``task`` waits for a coordinator."""
    store = open_store(folder)
    with store.transaction() as tx:
        tx.tasks.add(task.name, msgspec.json.encode(task), 0.0)
    return store


def wait_for(process: subprocess.Popen[str], holds: Callable[[Transaction], bool], store: Store) -> None:
    """Until the store shows it."""
    give_up_s = time.monotonic() + _START_S
    while True:
        with store.reading() as tx:
            if holds(tx):
                return
        assert process.poll() is None
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def _address(listener: socket.socket) -> str:
    return f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
