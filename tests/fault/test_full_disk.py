"""A disk that is really full: a file system of a few KiB or MiB, mounted in a namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.demo.inputs import write_examples
from coordinator.store.states import Outcome
from edge_sdk.errors import DiskFullError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import Failure
from tests.support.small_fleet import SmallFleet, some_examples

NOBODY = "mqtt://127.0.0.1:9"


def on_a_disk_of(size_kib: int, folder: Path) -> list[str]:
    """What to type before a command so that ``folder`` has ``size_kib`` for it and whatever it starts."""
    mount = f'mount -t tmpfs -o size={size_kib}k tmpfs "{folder}" && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """Where to mount a small file system; the test is skipped where the kernel does not let users do so."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run([*on_a_disk_of(4, folder), "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare (util-linux) is not installed")
    if done.returncode != 0:
        pytest.skip(f"no mounts in a user namespace here: {done.stderr.strip()}")
    return folder


# where it gets full: the outbox, its log, the training texts; the last two fit into neither
@pytest.mark.parametrize("size_kib", [4, 40, 80, 120])
def test_agent_on_a_full_disk_says_so_in_one_line(small_disk: Path, tmp_path: Path, size_kib: int) -> None:
    data = tmp_path / "texts.csv"
    write_examples(data, some_examples(4000, seed=0))
    words = ("run", "--device", "pi", "--broker", NOBODY, "--data", str(data), "--state-dir", str(small_disk / "state"))
    _check_one_line([*on_a_disk_of(size_kib, small_disk), sys.executable, "-m", "edge_sdk.cli", *words])


@pytest.mark.parametrize("size_kib", [4, 40, 120])
def test_coordinator_on_a_full_disk_says_so_in_one_line(small_disk: Path, tmp_path: Path, size_kib: int) -> None:
    data = tmp_path / "texts.csv"
    write_examples(data, some_examples(20, seed=0))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    words = ("--state-dir", str(small_disk / "s"), "--model", str(tmp_path), "--calibration", str(data))
    command = [sys.executable, "-m", "coordinator.cli", "task", "create", "t", *words, "--test", str(data)]
    _check_one_line([*on_a_disk_of(size_kib, small_disk), *command])


def test_demo_on_a_disk_where_no_agent_would_ask_for_work_says_so_in_one_line(small_disk: Path) -> None:
    words = ("demo", "--state-dir", str(small_disk / "s"), "--report", str(small_disk / "report.html"))
    twice = ("sh", "-c", '"$@" 2>&-; exec "$@"', "sh")  # what it left the first time is not in the way
    _check_one_line([*on_a_disk_of(200 << 10, small_disk), *twice, sys.executable, "-m", "coordinator.cli", *words])


@pytest.mark.usefixtures("small_disk")
@pytest.mark.long
def test_agent_whose_disk_fills_up_gives_its_offer_up_and_takes_the_next(fleet: SmallFleet) -> None:
    fleet.create_task("news", "--rounds", "2", "--min-devices", "2", "--no-release")
    fleet.serve()
    state = fleet.folder / "full"
    state.mkdir()
    fleet.agent("full", 400, through=on_a_disk_of(400 << 10, state))
    fleet.wait_until(lambda: "gathering" in fleet.log_of("full"), "the device with a small disk asks for work")
    disk = Path(f"/proc/{fleet.processes['full'].pid}/root{state}")
    fill(disk, but_bytes=6 << 20)
    fleet.agent("roomy", 400)
    fleet.wait_until(lambda: outcome(fleet, 1, "full") is Outcome.FAILED, "the offer is given up")
    (disk / "ballast").unlink()
    fleet.finish()
    failed = fleet.read(lambda tx: {offer.device: offer for offer in tx.offers.of_round("news", 1)})["full"]
    assert failed.failure is Failure.STORAGE, fleet.story()
    assert "no space left" in failed.detail
    assert outcome(fleet, 1, "roomy") is outcome(fleet, 2, "full") is Outcome.UPDATED, fleet.story()
    assert "Traceback" not in fleet.log_of("full")


@pytest.mark.usefixtures("small_disk")
@pytest.mark.long
def test_agent_makes_room_of_stale_blobs_and_declines_what_its_limit_cannot_hold(fleet: SmallFleet) -> None:
    fleet.create_task("news", "--rounds", "1", "--min-devices", "2", "--no-release")
    fleet.serve()
    state = fleet.folder / "cluttered"
    state.mkdir()
    fleet.agent("cluttered", 400, through=on_a_disk_of(400 << 10, state))
    fleet.wait_until(lambda: is_ready(fleet, "cluttered"), "the device with a small disk asks for work")
    disk = Path(f"/proc/{fleet.processes['cluttered'].pid}/root{state}")
    fill(disk, but_bytes=6 << 20)
    (disk / "ballast").rename(disk / "blobs" / digest_of(b"of a task that is long over"))
    fleet.agent("tight", 400, options=("--cache-mib", "1"))
    fleet.finish()
    offers = fleet.read(lambda tx: {offer.device: offer for offer in tx.offers.of_round("news", 1)})
    assert offers["cluttered"].outcome is Outcome.UPDATED, fleet.story()
    assert offers["tight"].failure is Failure.STORAGE, fleet.story()
    assert "do not fit into the cache of 1.0 MiB" in offers["tight"].detail


def outcome(fleet: SmallFleet, number: int, device: str) -> Outcome | None:
    offers = fleet.read(lambda tx: tx.offers.of_round("news", number))
    return next((offer.outcome for offer in offers if offer.device == device), None)


def is_ready(fleet: SmallFleet, device: str) -> bool:
    known = fleet.read(lambda tx: tx.devices.get(device))
    return known is not None and known.snapshot is not None


def fill(disk: Path, *, but_bytes: int) -> None:
    """Take all of a disk but ``but_bytes``."""
    figures = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, figures.f_bavail * figures.f_frsize - but_bytes)


def _check_one_line(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == DiskFullError.exit_code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
