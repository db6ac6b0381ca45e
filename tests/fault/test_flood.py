"""A thousand devices hand in 5 MB each at once: the coordinator takes them in turn and in bounded memory, and all."""

from __future__ import annotations

import hashlib
import io
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.store.states import TaskStatus
from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.submodel import Architecture, TrainablePart
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.transport import mqtt
from edge_sdk.transport.base import Will
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.mqtt import BrokerAddress, MqttTransport
from tests.support import light_model
from tests.support.broker import mosquitto_broker, peak_memory_bytes
from tests.support.light_model import light_task
from tests.support.proof import Proof
from tests.support.served import LEAK, ServedApart, quick
from tests.support.simulator import Fleet, MakeLink, MemoryBlobs, Pace

pytestmark = pytest.mark.mosquitto
MIB = 1 << 20
LARGE = replace(light_model.ARCHITECTURE, hidden=256, head_size=64, ffn=768)  # 5.2 MB to train
SMALL = replace(light_model.ARCHITECTURE, hidden=64, head_size=16, ffn=128)  # 0.2 MB
AS_IN_THE_FIELD = Pace(ready_s=10.0, resend_s=5.0, tick_s=1.0)
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


class Forgetful(dict[str, bytes]):
    """What devices were sent: nothing of it is kept."""

    def pop(self, *_: Any) -> bytes:
        return b""


class ThinBlobs(MemoryBlobs):
    """A device whose update differs from all others in its last number: a thousand of them in the memory of one.

    It has every model that it is offered already, so that nothing but updates is on the way.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.whole = Forgetful()
        self._body, self._hashed, self._ends = body, hashlib.sha256(body), dict[str, bytes]()

    def has(self, _: str) -> bool:
        return True

    def size_of(self, digest: str) -> int | None:
        return len(self._body) + len(self._ends[digest]) if digest in self._ends else None

    def read(self, digest: str, start: int, stop: int) -> bytes:
        end = self._ends[digest][max(0, start - len(self._body)) : max(0, stop - len(self._body))]
        return self._body[start:stop] + end

    def put_bytes(self, data: bytes) -> str:
        whole = self._hashed.copy()
        whole.update(data)
        self._ends[whole.hexdigest()] = data
        return whole.hexdigest()


def update_body(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An update of the whole model but for its last number."""
    monkeypatch.setattr(light_model, "ARCHITECTURE", architecture)
    family, rng, file = family_of(architecture.family), np.random.default_rng(0), io.BytesIO()
    trained = {
        name: rng.normal(0, 0.01, array.shape).astype(np.float32)
        for name, array in light_model._parameters(0).items()
        if family.is_trainable(name, TrainablePart.NO_EMBEDDINGS)
    }
    write_tensors(file, trained)
    return file.getvalue()[:-4]


def last_number(device: str, offer: Offer, _: bytes) -> bytes:
    return np.float32(1e-6 * int(device.partition("-")[2]) + 1e-3 * offer.round).tobytes()


@contextmanager
def many_open_files() -> Iterator[None]:
    """As a service manager grants them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(frozen=True)
class Taken:
    """What came of a flood."""

    lost: int
    peak_mib: float
    seconds: float


def flood(folder: Path, devices: int, body: bytes, architecture: Architecture) -> Taken:
    """All devices get their offer at once, and hand in at once."""
    task = light_task(folder, rounds=1, min_devices=devices, quorum=devices, round_deadline_s=1200.0)
    with many_open_files(), mosquitto_broker() as broker:
        settings = {"gather_s": 600.0, "ready_valid_s": 120.0, "retry_after_s": 10.0, "exit_when_done": False}
        config = quick(folder, str(broker.address), **settings)
        coordinator = ServedApart(config, task, architecture)
        fleet = Fleet(
            [f"device-{number}" for number in range(devices)],
            links(broker.address),
            work=last_number,
            pace=AS_IN_THE_FIELD,
            blobs=lambda: ThinBlobs(body),
        )
        with coordinator, fleet:
            coordinator.wait_until(lambda: coordinator.read(lambda tx: tx.updates.of_round(task.name, 1)), 300.0)
            began_s = time.monotonic()
            coordinator.wait_until(lambda: coordinator.status is TaskStatus.DONE, 1200.0)
            coordinator.wait_until(lambda: fleet.is_settled, 120.0)
            peak_mib = peak_memory_bytes(coordinator.process.pid) / MIB
            return Taken(devices - len(coordinator.accepted), peak_mib, time.monotonic() - began_s)


def links(address: BrokerAddress) -> MakeLink:
    def link(name: str, filters: Sequence[str], will: Will) -> MqttTransport:
        return MqttTransport(address, name, filters, will=will)

    return link


@pytest.mark.timeout(1500)
def test_flood_of_updates_is_taken_in_turn_and_in_bounded_memory(
    tmp_path: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, architecture = proof.count(short=50, full=1000), LARGE if proof.is_full else SMALL
    monkeypatch.setattr(mqtt, "_CONNECT_TIMEOUT_S", 60.0)  # a thousand clients share this process
    body = update_body(architecture, monkeypatch)
    taken = flood(tmp_path, devices, body, architecture)
    told = f"{devices} devices with {len(body) / 1e6:.1f} MB each at once"
    proof.show("R8", f"updates lost of {told}", taken.lost, at_most=0)
    proof.show("R8", f"MiB of the coordinator at most, {told}", taken.peak_mib, at_most=BUDGET_MIB)
    proof.show("R8", f"seconds to the new version, {told}", taken.seconds, at_most=900)


def test_coordinator_that_keeps_what_it_is_sent_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: as much as the budget is kept in memory."""
    monkeypatch.setenv(LEAK, str(BUDGET_MIB * MIB))
    assert flood(tmp_path, 2, update_body(SMALL, monkeypatch), SMALL).peak_mib > BUDGET_MIB


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
