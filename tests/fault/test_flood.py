"""A thousand devices hand in 5 MB each at once: the coordinator takes them in turn and in bounded memory, and all."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from coordinator.store.states import TaskStatus
from edge_sdk.elastic.submodel import Architecture
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support import light_model
from tests.support.broker import mosquitto_broker, peak_memory_bytes
from tests.support.crowd import crowd, update_body
from tests.support.light_model import light_task
from tests.support.proof import Proof
from tests.support.served import LEAK, ServedApart, quick

pytestmark = pytest.mark.mosquitto
MIB = 1 << 20
LARGE = replace(light_model.ARCHITECTURE, hidden=256, head_size=64, ffn=768)  # 5.2 MB to train
SMALL = replace(light_model.ARCHITECTURE, hidden=64, head_size=16, ffn=128)  # 0.2 MB
BUDGET_MIB = 1000


_RELAY = """
import os, sys, time
from pathlib import Path
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import BlobExchange
from tests.support.broker import peak_memory_bytes

folder, digest, size_bytes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
peers, waiting = {}, []
for name in ("source", "device", "other"):
    send = lambda to, message, name=name: waiting.append((name, to, message))
    peers[name] = BlobExchange(BlobFolder(folder / name), send)
before_bytes = peak_memory_bytes(os.getpid())
for receiver, sender in (("device", "source"), ("other", "device")):
    peers[receiver].fetch(sender, digest, size_bytes, time.monotonic())
    while waiting:
        sender, to, message = waiting.pop(0)
        peers[to].handle(sender, message, time.monotonic())
print((peak_memory_bytes(os.getpid()) - before_bytes) / 2**20)
"""


@dataclass(frozen=True)
class Taken:
    """What came of a flood."""

    lost: int
    peak_mib: float
    seconds: float


def flood(folder: Path, devices: int, architecture: Architecture) -> Taken:
    """All devices get their offer at once, and hand in at once."""
    task = light_task(folder, rounds=1, min_devices=devices, quorum=devices, round_deadline_s=1200.0)
    settings = {"gather_s": 600.0, "ready_valid_s": 120.0, "retry_after_s": 10.0, "exit_when_done": False}
    with mosquitto_broker() as broker:
        coordinator = ServedApart(quick(folder, str(broker.address), **settings), task, architecture)
        with coordinator, crowd(broker.address, devices, architecture) as receipts:
            coordinator.wait_until(lambda: coordinator.read(lambda tx: tx.updates.of_round(task.name, 1)), 300.0)
            began_s = time.monotonic()
            coordinator.wait_until(lambda: coordinator.status is TaskStatus.DONE, 1200.0)
            coordinator.wait_until(lambda: sum(receipts()) == devices, 120.0)
            peak_mib = peak_memory_bytes(coordinator.process.pid) / MIB
            return Taken(devices - len(coordinator.accepted), peak_mib, time.monotonic() - began_s)


@pytest.mark.timeout(1500)
def test_flood_of_updates_is_taken_in_turn_and_in_bounded_memory(tmp_path: Path, proof: Proof) -> None:
    devices, architecture = proof.count(short=50, full=1000), LARGE if proof.is_full else SMALL
    taken = flood(tmp_path, devices, architecture)
    told = f"{devices} devices with {len(update_body(architecture)) / 1e6:.1f} MB each at once"
    proof.show("R8", f"updates lost of {told}", taken.lost, at_most=0)
    proof.show("R8", f"MiB of the coordinator at most, {told}", taken.peak_mib, at_most=BUDGET_MIB)
    proof.show("R8", f"seconds to the new version, {told}", taken.seconds, at_most=900)


def test_coordinator_that_keeps_what_it_is_sent_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: as much as the budget is kept in memory."""
    monkeypatch.setenv(LEAK, str(BUDGET_MIB * MIB))
    assert flood(tmp_path, 2, SMALL).peak_mib > BUDGET_MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")
def test_device_fetches_and_hands_on_a_blob_that_is_larger_than_its_memory(tmp_path: Path, proof: Proof) -> None:
    size_mib, most_mib = (proof.count(*pair) for pair in ((16, 256), (8, 64)))
    source, other = BlobFolder(tmp_path / "source"), BlobFolder(tmp_path / "other")
    digest = source.put_bytes(random.Random(proof.seed).randbytes(MIB) * size_mib)
    command = [sys.executable, "-c", _RELAY, str(tmp_path), digest, str(size_mib * MIB)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert other.has(digest)
    told = f"to fetch and hand on a blob of {size_mib} MiB"
    proof.show("R8", f"MiB of memory that a device needs more, {told}", float(said), at_most=most_mib)
