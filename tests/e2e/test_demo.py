"""`coordinator demo` as a user types it: interrupted by Ctrl-C, resumed, and told to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.demo.fleet import FLEET
from coordinator.demo.inputs import write_examples
from coordinator.demo.main import ELASTIC
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.records import UpdateRecord
from coordinator.store.states import Phase
from edge_sdk.protocol.messages import Verdict
from tests.support.small_fleet import some_examples

ROUNDS = 2
ALL_GONE_S = 5.0
PATIENCE_S = 120.0


def start_demo(folder: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    """In a session of its own, so that the test can press Ctrl-C as a terminal does: for all of its group."""
    command = (sys.executable, "-m", "coordinator.cli", "demo", "--state-dir", str(folder / "state"))
    with (folder / "demo.log").open("a") as log:
        return subprocess.Popen(
            [*command, "--report", str(folder / "pages" / "report.html"), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            env=os.environ | environment | {"COLUMNS": "120"},
        )


def processes_of(folder: Path) -> dict[int, str]:
    """Every process whose command line names something in ``folder``: id and command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and int(entry.name) != os.getpid():
            found[int(entry.name)] = words
    return found


def story(folder: Path) -> str:
    """The end of every log."""
    logs = (folder / "demo.log", *sorted((folder / "state" / "logs").glob("*.log")))
    return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)


def end_demo(folder: Path, demo: subprocess.Popen[str]) -> None:
    """Whatever it is doing."""
    for process_id in processes_of(folder):
        os.kill(process_id, signal.SIGKILL)
    demo.wait()


def wait_until_collecting(folder: Path, demo: subprocess.Popen[str], number: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_collecting(folder, number):
        assert demo.poll() is None, story(folder)
        assert time.monotonic() < deadline_s, story(folder)
        time.sleep(0.1)


def is_collecting(folder: Path, number: int) -> bool:
    if not (folder / "state" / "coordinator" / "root.json").exists():
        return False
    store = open_store(folder / "state" / "coordinator")
    try:
        with store.reading() as tx:
            collecting = tx.rounds.collecting(ELASTIC)
        return collecting is not None and collecting.number == number
    finally:
        store.close()


def updates_of(store: Store, number: int) -> list[UpdateRecord]:
    with store.reading() as tx:
        return tx.updates.of_round(ELASTIC, number)


@pytest.mark.long  # a seventh of what make test takes in all; the main job itself is in test_main_job
@pytest.mark.timeout(300)
def test_demo_interrupted_in_its_second_round_goes_on_from_there(
    tmp_path: Path, small_model: Path, template_cache: dict[str, str]
) -> None:
    write_examples(tmp_path / "texts.csv", some_examples(300, seed=3))
    inputs = ("--model", str(small_model), "--data", str(tmp_path / "texts.csv"))
    demo = start_demo(tmp_path, template_cache, *inputs, "--rounds", str(ROUNDS), "--no-compare")
    try:
        wait_until_collecting(tmp_path, demo, 2)
        assert len(processes_of(tmp_path)) >= len(FLEET) + 3, "demo, broker, coordinator and the agents run"
        _interrupt(tmp_path, demo)
        store = open_store(tmp_path / "state" / "coordinator")
        first_round = updates_of(store, 1)
        demo = start_demo(tmp_path, template_cache, "--resume")  # as the interrupted one said, told nothing else again
        assert demo.wait(PATIENCE_S) == 0, story(tmp_path)
        assert not processes_of(tmp_path)
        assert updates_of(store, 1) == first_round, "a closed round is not trained again"
        _check_rounds(store)
        store.close()
    finally:
        end_demo(tmp_path, demo)
    _check_what_the_user_sees(tmp_path, small_model.name)


def _interrupt(folder: Path, demo: subprocess.Popen[str]) -> None:
    pressed_s = time.monotonic()
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(ALL_GONE_S) == 130, story(folder)
    while left := processes_of(folder):
        assert time.monotonic() - pressed_s < ALL_GONE_S, left
        time.sleep(0.05)


def _check_rounds(store: Store) -> None:
    with store.reading() as tx:
        assert [known.phase for known in tx.rounds.all(ELASTIC)] == [Phase.CLOSED] * ROUNDS
        assert [known.number for known in tx.versions.all(ELASTIC)] == [0, *range(1, ROUNDS + 1)]
    for number in range(1, ROUNDS + 1):
        updates = updates_of(store, number)
        assert {update.verdict for update in updates} == {Verdict.ACCEPTED}
        assert sorted(update.device for update in updates) == sorted(device.name for device in FLEET)


def _check_what_the_user_sees(folder: Path, model: str) -> None:
    said = (folder / "demo.log").read_text()
    assert "interrupted; every process has ended" in said
    assert "resuming what is in" in said
    assert "Traceback" not in said
    for heading in ("What each device trained", "What each device runs now", "All devices, each training its part"):
        assert heading in said, said
    assert "Only the devices that can train all of it" not in said
    page = (folder / "pages" / "report.html").read_text()
    assert "<svg" in page
    assert f"train {model}" in page
    assert (folder / "pages" / "report.svg").read_text().rstrip().endswith("</svg>")
    for log in (folder / "state" / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(errors="replace"), story(folder)
