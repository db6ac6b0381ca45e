"""Processes killed without a word, at the moments that hurt: nothing is lost, nothing counts twice."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from coordinator.store.states import Phase
from edge_sdk.protocol.messages import UpdateReady, decode_from_device
from tests.support.small_fleet import SmallFleet

LIMIT_MIB = 400


def stop_in_mid_upload(fleet: SmallFleet, name: str) -> str:
    """Stop the agent once some, but not all, chunks of its update are at the coordinator; the update's id."""
    blobs = fleet.state / "blobs"

    def halfway() -> bool:
        flags = [path.read_bytes() for path in blobs.glob("*.have")] if blobs.exists() else []
        return any(0 < sum(have) < len(have) for have in flags)

    fleet.wait_until(halfway, "an upload half-way", pause_s=0.001)
    os.kill(fleet.processes[name].pid, signal.SIGSTOP)
    assert halfway(), "the upload was over before the agent could be stopped"
    return outbox(fleet, name)[0]


def outbox(fleet: SmallFleet, name: str) -> list[str]:
    """The ids of what waits for a receipt."""
    with sqlite3.connect(fleet.folder / name / "outbox.sqlite") as connection:
        rows = connection.execute("SELECT payload FROM messages").fetchall()
    connection.close()
    messages = [decode_from_device(payload) for (payload,) in rows]
    return [message.update_id for message in messages if isinstance(message, UpdateReady)]


def trainings(fleet: SmallFleet, name: str) -> int:
    return fleet.log_of(name).count("round 1 of news: training")


def test_agent_killed_in_mid_upload_counts_once(fleet: SmallFleet) -> None:
    fleet.create_task("news", "--rounds", "1", "--no-release")
    fleet.serve()
    fleet.agent("pi", LIMIT_MIB)
    update = stop_in_mid_upload(fleet, "pi")
    fleet.kill("pi", signal.SIGKILL)
    fleet.agent("pi", LIMIT_MIB)
    fleet.finish()
    assert [known.update_id for known in fleet.read(lambda tx: tx.updates.of_round("news", 1))] == [update]
    assert trainings(fleet, "pi") == 1, fleet.story()


@pytest.mark.long
def test_agent_killed_in_mid_upload_without_its_outbox_has_to_train_again(fleet: SmallFleet) -> None:
    """The control: it is the outbox that saves the work."""
    fleet.create_task("news", "--rounds", "1", "--no-release")
    fleet.serve()
    fleet.agent("pi", LIMIT_MIB)
    stop_in_mid_upload(fleet, "pi")
    fleet.kill("pi", signal.SIGKILL)
    Path(fleet.folder / "pi" / "outbox.sqlite").unlink()
    for left_over in (fleet.folder / "pi").glob("outbox.sqlite-*"):
        left_over.unlink()
    fleet.agent("pi", LIMIT_MIB)
    fleet.finish()
    assert trainings(fleet, "pi") == 2, fleet.story()


@pytest.mark.long
def test_coordinator_killed_while_it_collects_goes_on(fleet: SmallFleet) -> None:
    fleet.create_task("news", "--rounds", "2", "--min-devices", "2", "--no-release")
    fleet.serve()
    fleet.agent("a", LIMIT_MIB)
    fleet.agent("b", LIMIT_MIB)

    def is_collecting() -> bool:
        with_store = fleet.state / "coordinator.sqlite"
        return with_store.exists() and fleet.read(lambda tx: tx.rounds.collecting("news")) is not None

    fleet.wait_until(is_collecting, "an open round")
    fleet.kill("coordinator", signal.SIGKILL)
    fleet.serve()
    fleet.finish()
    rounds = fleet.read(lambda tx: tx.rounds.all("news"))
    assert [known.phase for known in rounds] == [Phase.CLOSED] * 2
    for number in (1, 2):
        updates = fleet.read(lambda tx, n=number: tx.updates.of_round("news", n))
        assert [known.device for known in sorted(updates, key=lambda known: known.device)] == ["a", "b"]
    assert [known.number for known in fleet.read(lambda tx: tx.versions.all("news"))] == [0, 1, 2]


@pytest.mark.long
def test_training_process_killed_is_reported_and_the_next_round_goes_on(fleet: SmallFleet) -> None:
    fleet.create_task("news", "--rounds", "2", "--min-devices", "2", "--no-release")
    fleet.serve()
    fleet.agent("a", LIMIT_MIB)
    fleet.agent("b", LIMIT_MIB)
    agent = fleet.processes["a"].pid
    os.kill(fleet.wait_until(lambda: child_of(agent), "a training process", pause_s=0.001), signal.SIGKILL)
    fleet.finish()
    offers = fleet.read(lambda tx: tx.offers.of_device("news", "a"))
    assert offers[0].failure is not None, fleet.story()
    assert "SIGKILL" in offers[0].detail


def child_of(process_id: int) -> int | None:
    """The training process that an agent has started."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            is_worker = b"edge_sdk.training.worker" in (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == process_id and is_worker:
            return int(entry.name)
    return None
