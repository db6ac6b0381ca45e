"""A device that is written in JavaScript from ``edge_sdk/protocol/README.md`` alone takes part in rounds and releases.

Its checks of messages are made of the README's tables as it starts, so what these leave out is missed here. Packages of
npm are installed once, into pytest's cache.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.delivery.roots import ROOT_FILE
from coordinator.models.versions import load_version
from coordinator.rounds.tasks import queue_task
from coordinator.store.opening import open_store
from coordinator.store.states import AssignmentStatus, Outcome
from edge_sdk import protocol
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import AdapterMethod, TrainablePart
from edge_sdk.protocol.messages import Encoding, EncodingKind
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.broker import Broker
from tests.support.motion_task import motion_task
from tests.support.small_fleet import SmallFleet

HERE = Path(__file__).parent / "second_implementation"
DEVICE, CHANGE, SHARE = "second", 1 / 1024, 0.25
KINDS = tuple(EncodingKind)


@pytest.fixture
def program(pytestconfig: pytest.Config) -> Path:
    """The device with its packages; the test is skipped where there are none."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = Path(pytestconfig.cache.mkdir("second_implementation"))
    lock, installed = HERE / "package-lock.json", folder / "installed"
    for file in (*HERE.glob("*.mjs"), HERE / "package.json", lock):
        shutil.copy(file, folder)
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit"], cwd=folder, capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"npm ci did not install its packages: {done.stderr.decode().strip()[-300:]}")
        shutil.copy(lock, installed)
    return folder / "device.mjs"


@pytest.fixture
def fleet(broker: Broker, tmp_path: Path, template_cache: dict[str, str]) -> Iterator[SmallFleet]:
    """A task of one round for each encoding."""
    settings = {"adapters": None, "part": TrainablePart.NO_EMBEDDINGS, "rounds": 1}
    task = motion_task(tmp_path, AdapterMethod.LORA, **settings)
    with SmallFleet(tmp_path, tmp_path / "model", str(broker.address), template_cache) as running:
        store = open_store(running.state)
        for kind in KINDS:
            config = msgspec.structs.replace(task, name=kind.value, encoding=Encoding(kind=kind, share=SHARE))
            queue_task(store, config, time.time(), "test")
        store.close()
        yield running


@pytest.mark.long
def test_device_in_another_language_counts_and_verifies_its_release(program: Path, fleet: SmallFleet) -> None:
    fleet.serve()
    fleet.wait_until(lambda: "begins" in fleet.log_of("coordinator"), "the coordinator's first task")
    names = {
        "broker": fleet.broker,
        "device": DEVICE,
        "state-dir": fleet.folder / DEVICE,
        "root": fleet.state / ROOT_FILE,
    }
    options = [word for name, value in names.items() for word in (f"--{name}", str(value))]
    readme = str(Path(protocol.__file__).with_name("README.md"))
    fleet.start(DEVICE, "node", str(program), *options, environment={"WIRE_README": readme})
    fleet.finish()

    said = [json.loads(line) for line in fleet.log_of(DEVICE).splitlines()]
    assert {each["event"] for each in said} == {"trained", "receipt", "fetched"}, fleet.story()
    assert {each["verdict"] for each in said if each["event"] == "receipt"} == {"accepted"}
    offered = {each["task"]: each["weights"] for each in said if each["event"] == "trained"}
    for kind in KINDS:
        offers = fleet.read(lambda tx, task=kind.value: tx.offers.of_round(task, 1))
        assert [(offer.device, offer.outcome) for offer in offers] == [(DEVICE, Outcome.UPDATED)]
        assigned = fleet.read(lambda tx, task=kind.value: tx.assignments.of_task(task))
        assert [each.status for each in assigned] == [AssignmentStatus.ROLLED_BACK]
        weights = fleet.folder / DEVICE / "blobs" / offered[kind.value]
        for name, before in read_tensors(weights.read_bytes()).items():
            assert np.allclose(_newest(fleet, kind.value)[name] - before, _said(before, kind), atol=CHANGE / 100)


def _newest(fleet: SmallFleet, task: str) -> dict[str, Array]:
    version = fleet.read(lambda tx: tx.versions.latest(task))
    assert version is not None
    return load_version(BlobFolder(fleet.state / "blobs"), version.number, version.blobs).parameters


def _said(weights: Array, kind: EncodingKind) -> Array:
    """By how much the device has changed ``weights``; of entries of equal size top-k sends the first."""
    change = np.full(weights.size, CHANGE, np.float32)
    if kind is EncodingKind.TOPK:
        change[max(1, int(np.ceil(SHARE * weights.size))) :] = 0
    return change.reshape(weights.shape)
