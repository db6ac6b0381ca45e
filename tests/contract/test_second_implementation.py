"""A device that is written in JavaScript from ``edge_sdk/protocol/README.md`` alone takes part in rounds and releases.

Its checks of messages are made of the README's tables as it starts, so what these leave out is missed here. Packages of
npm are installed once, into pytest's cache.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.delivery.roots import ROOT_FILE
from coordinator.fleet.folder import Fleet
from coordinator.models.versions import load_version
from coordinator.rounds.tasks import queue_task
from coordinator.store.opening import open_store
from coordinator.store.states import AssignmentStatus, Outcome, Phase
from edge_sdk import protocol
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import AdapterMethod, TrainablePart
from edge_sdk.protocol.messages import Encoding, EncodingKind, Failure, Verdict
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.broker import Broker, free_port
from tests.support.motion_task import motion_task
from tests.support.secured import secured_fleet
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
    fleet.wait_until(lambda: " starts" in fleet.log_of("coordinator"), "the coordinator's first task")
    start(fleet, program, broker=fleet.broker, root=fleet.state / ROOT_FILE)
    fleet.finish()

    said = events(fleet)
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


@pytest.mark.long
@pytest.mark.mosquitto
def test_device_in_another_language_goes_through_all_that_a_fleet_may_ask(
    program: Path, tmp_path: Path, small_model: Path, template_cache: dict[str, str]
) -> None:
    """It enrols, declines, is killed in its upload, loses its coordinator, follows a new root, and is revoked."""
    with (
        secured_fleet(tmp_path, api_port=free_port()) as secured,
        SmallFleet(tmp_path, small_model, str(secured.broker.address), template_cache) as fleet,
    ):
        fleet.create_task("news", "--rounds", "2", "--part", TrainablePart.ALL.value)
        fleet.serve(stays=True)
        enrolling = enrolment(fleet, secured.fleet)
        start(fleet, program, declines=Failure.POLICY.value, **enrolling)
        wait_for_half_an_update(fleet)
        fleet.kill(DEVICE)
        rotate_root(fleet)
        start(fleet, program)
        fleet.wait_until(lambda: rounds_closed(fleet) == 1, "the first round")
        wait_for_half_an_update(fleet)
        fleet.kill("coordinator")
        fleet.serve(stays=True)
        fleet.wait_until(lambda: statuses(fleet) == [AssignmentStatus.ROLLED_BACK], "the release's report")
        revoked = fleet.command("coordinator.cli", "device", "revoke", DEVICE, "--state-dir", str(fleet.state))
        assert "its broker refused it and ended its session" in revoked.stdout
        fleet.wait_until(lambda: "revoked" in fleet.log_of(DEVICE), "the device hears of it")
        said = [each for each in events(fleet) if each["event"] != "error"]

    assert [each["event"] for each in said] == ["declined", "trained", "receipt", "trained", "receipt", "fetched"]
    assert [each["verdict"] for each in said if each["event"] == "receipt"] == [Verdict.ACCEPTED.value] * 2
    assert said[-1]["root"] == 2


def start(fleet: SmallFleet, program: Path, **options: object) -> None:
    """The device, which knows what it was told before it was killed."""
    known = {"device": DEVICE, "state-dir": fleet.folder / DEVICE} | options
    words = [word for name, value in known.items() for word in (f"--{name}", str(value))]
    readme = str(Path(protocol.__file__).with_name("README.md"))
    fleet.start(DEVICE, "node", str(program), *words, environment={"WIRE_README": readme})


def events(fleet: SmallFleet) -> list[dict[str, object]]:
    """What the device has told."""
    return [json.loads(line) for line in fleet.log_of(DEVICE).splitlines()]


def enrolment(fleet: SmallFleet, secured: Fleet) -> dict[str, str]:
    """What a person hands to the device, once the coordinator answers."""
    state, port = ("--state-dir", str(fleet.state)), str(secured.settings.api_port)
    fleet.start("api", sys.executable, "-m", "coordinator.cli", "api", "--port", port, *state)
    fleet.wait_until(lambda: "API at" in fleet.log_of("api"), "the API")
    token = fleet.command("coordinator.cli", "device", "token", "--device", DEVICE, *state).stdout.strip()
    at = f"https://127.0.0.1:{port}"
    return {"coordinator": at, "token": token, "fingerprint": secured.authority.fingerprint}


def wait_for_half_an_update(fleet: SmallFleet) -> None:
    """Some grains of it are there, and some are not."""

    def halfway() -> bool:
        flags = [path.read_bytes() for path in (fleet.state / "blobs").glob("*.have")]
        return any(0 < sum(have) < len(have) for have in flags)

    fleet.wait_until(halfway, "half an update", pause_s=0.001)


def rotate_root(fleet: SmallFleet) -> None:
    """Another key signs roots from now on."""
    new, following, known = fleet.folder / "new.key", fleet.folder / "next.json", fleet.state / ROOT_FILE
    fleet.command("coordinator.cli", "key", "new", str(new))
    keys = ("--root", str(new.with_suffix(".pub")), "--key", str(fleet.state / "root.key"), "--key", str(new))
    fleet.command("coordinator.cli", "root", "rotate", str(following), "--from", str(known), *keys)
    fleet.command("coordinator.cli", "root", "install", str(following), "--state-dir", str(fleet.state))


def rounds_closed(fleet: SmallFleet) -> int:
    """How many are decided."""
    return sum(known.phase is Phase.CLOSED for known in fleet.read(lambda tx: tx.rounds.all("news")))


def statuses(fleet: SmallFleet) -> list[AssignmentStatus]:
    """How the device stands to what it is told to run."""
    return [assigned.status for assigned in fleet.read(lambda tx: tx.assignments.of_task("news"))]


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
