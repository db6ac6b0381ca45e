"""An ``edge-agent run`` that is connected and waits for work: how soon it is there, and what it then takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from coordinator.broker import EmbeddedBroker
from coordinator.delivery.roots import ensure_root
from coordinator.demo.fleet import FLEET, NAME, agent_arguments, data_file
from coordinator.demo.inputs import packaged_texts, write_examples
from coordinator.store.opening import open_store
from edge_sdk.protocol.messages import Ready, decode_from_device
from edge_sdk.protocol.topics import Channel, Topic
from edge_sdk.transport.base import Incoming
from edge_sdk.transport.mqtt import MqttTransport

_DEVICE = FLEET[0]
_TEXTS = 300
_START_TIMEOUT_S = 60.0
_IDLE_S = 3.0


@dataclass(frozen=True, slots=True)
class IdleAgent:
    """Resident and proportional memory after some idle seconds, the peak until then, all in bytes of the kernel's.

    ``ready_s`` passed from the start of the process until its Ready had come through the broker; ``processor_s`` is
    what the process had used of a processor when it did, which a busy machine does not stretch as much.
    """

    resident_bytes: int
    proportional_bytes: int
    peak_bytes: int
    ready_s: float
    processor_s: float


def idle_agents(
    folder: Path, repeats: int, python: str = sys.executable, environment: Mapping[str, str] | None = None
) -> list[IdleAgent]:
    """One after the other, with what the demo's first device has; ``folder`` is empty at first."""
    for name in ("coordinator", "data"):
        (folder / name).mkdir(parents=True)
    with closing(open_store(folder / "coordinator")) as store:
        ensure_root(store, folder / "coordinator", time.time())
    write_examples(data_file(_DEVICE, folder), packaged_texts().take(range(_TEXTS)))
    with EmbeddedBroker(folder / "broker") as broker:
        command = [python, "-m", "edge_sdk.cli", *agent_arguments(_DEVICE, str(broker.address), folder)]
        listener = MqttTransport(broker.address, "listener", (str(Topic(NAME, _DEVICE.name, Channel.UP)),))
        listener.connect()
        try:
            return [_start(command, folder, environment, listener) for _ in range(repeats)]
        finally:
            listener.close()


def _start(
    command: list[str], folder: Path, environment: Mapping[str, str] | None, listener: MqttTransport
) -> IdleAgent:
    started_s = time.perf_counter()
    cwd = None if environment is None else folder
    agent = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment, cwd=cwd)
    try:
        _wait_until_ready(listener)
        ready_s, processor_s = time.perf_counter() - started_s, _processor_s(agent.pid)
        time.sleep(_IDLE_S)
        memory = _fields(agent.pid, "status") | _fields(agent.pid, "smaps_rollup")
        return IdleAgent(memory["VmRSS"], memory["Pss"], memory["VmHWM"], ready_s, processor_s)
    finally:
        agent.terminate()
        agent.wait()


def _wait_until_ready(listener: MqttTransport) -> None:
    """Until the agent asks for work."""
    give_up_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        delivery = listener.receive(1.0)
        if isinstance(delivery, Incoming) and isinstance(decode_from_device(delivery.payload), Ready):
            return
    raise RuntimeError(f"the agent did not ask for work within {_START_TIMEOUT_S:.0f} s")


def _fields(process_id: int, file: str) -> dict[str, int]:
    """Those that the kernel gives in kB, in bytes."""
    lines = Path(f"/proc/{process_id}/{file}").read_text(encoding="ascii").splitlines()
    return {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith(" kB")}


def _processor_s(process_id: int) -> float:
    """User and system time (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
