"""A release as people make it: trained, looked at, signed by two of them, rolled out by stages; and a bad one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.store.states import AssignmentStatus, RolloutStatus, TaskStatus
from tests.support.small_fleet import LABELS, SmallFleet, need_mib

EAGER = ("--learning-rate", "4e-4", "--epochs", "6", "--max-steps", "18")


class Typed:
    """Commands on one state folder."""

    def __init__(self, fleet: SmallFleet) -> None:
        self._fleet = fleet

    def __call__(self, *words: object) -> str:
        done = self._fleet.command("coordinator.cli", *map(str, words))
        return done.stdout

    def on_fleet(self, *words: object) -> str:
        return self(*words, "--state-dir", self._fleet.state)

    def rows(self, *words: object) -> list[dict[str, Any]]:
        return json.loads(self.on_fleet(*words, "--json"))


@pytest.mark.long
@pytest.mark.timeout(600)  # two dozen commands, some of which load torch
def test_release_is_signed_by_two_people_and_a_bad_one_comes_back_from_the_canary(fleet: SmallFleet) -> None:
    typed, folder = Typed(fleet), fleet.folder
    fleet.create_task("news", "--rounds", "1", "--min-devices", "2", *EAGER)
    for name in ("safe", "ann", "bob"):
        typed("key", "new", folder / f"{name}.key")
    people = ("--release", folder / "ann.pub", "--release", folder / "bob.pub", "--root", folder / "safe.pub")
    keys = ("--key", fleet.state / "root.key", "--key", folder / "safe.key")
    typed("root", "rotate", folder / "root-2.json", "--from", fleet.state / "root.json", *people, *keys)
    typed.on_fleet("root", "install", folder / "root-2.json")
    for name in ("release.key", "root.key"):
        (fleet.state / name).unlink()
    fleet.serve(stays=True)
    for name in ("pi-a", "pi-b"):
        fleet.agent(name, need_mib(2))
    fleet.wait_until(lambda: fleet.read(lambda tx: tx.tasks.get("news")).status is TaskStatus.DONE, "the task's end")

    assert typed.rows("release", "list")[0]["signatures"] == "0 of 2"
    done = fleet.command(
        "coordinator.cli", "rollout", "start", "1", "--stages", "100%", "--state-dir", str(fleet.state), check=False
    )
    assert (done.returncode, "is not approved" in done.stderr) == (2, True)
    file = folder / "release-1.json"
    (exported,) = typed.rows("release", "show", "1", "--manifest-file", file)
    assert exported["precision"] == "int8"
    assert 0 < exported["accuracy"] <= 1
    assert "1 of the 2" in typed.on_fleet("release", "approve", "1", "--key", folder / "ann.key")
    signed = typed("release", "sign", file, "--key", folder / "bob.key").split()[-1]
    assert "approved" in typed.on_fleet("release", "approve", "1", "--signature", signed)

    typed.on_fleet("device", "group", "pi-a", "canary")
    typed.on_fleet("rollout", "start", "1", "--stages", "canary,100%", "--trial", "0.5")
    fleet.wait_until(lambda: status_of(fleet, 1) is RolloutStatus.DONE, "rollout 1")
    asked = ("--device", "pi-b", "--state-dir", str(fleet.folder / "pi-b"), "--json")
    assert json.loads(fleet.command("edge_sdk.cli", "predict", "alpha zeta", *asked).stdout)["label"] in LABELS

    made = typed.rows("release", "create", "news", "--precision", "int8", "--precision", "fp32")
    assert [row["precision"] for row in made] == ["int8", "fp32"]
    assert made[0]["mib"] < 0.5 * made[1]["mib"]
    assert abs(made[0]["accuracy"] - made[1]["accuracy"]) < 0.2
    typed.on_fleet("release", "approve", "2", "--key", folder / "ann.key", "--key", folder / "bob.key")
    typed.on_fleet("rollout", "start", "2", "--stages", "canary,100%", "--max-latency-ms", "0.001")
    fleet.wait_until(lambda: status_of(fleet, 2) is RolloutStatus.HALTED, "rollout 2 halts")
    found = {known.device: known for known in fleet.read(lambda tx: tx.assignments.of_rollout(2))}
    assert found["pi-a"].status is AssignmentStatus.ROLLED_BACK
    assert "an example takes" in found["pi-a"].reason
    assert found["pi-b"].status is AssignmentStatus.PENDING
    assert {current_release(fleet, name) for name in found} == {1}
    typed.on_fleet("rollout", "rollback", "2")
    fleet.wait_until(lambda: status_of(fleet, 2) is RolloutStatus.ROLLED_BACK, "rollout 2 is rolled back")
    assert [row["status"] for row in typed.rows("rollout", "list")] == ["done", "rolled-back"]


def status_of(fleet: SmallFleet, rollout: int) -> RolloutStatus:
    return fleet.read(lambda tx: tx.rollouts.get(rollout)).status


def current_release(fleet: SmallFleet, device: str) -> int | None:
    from edge_sdk.inference.slots import Slots

    return Slots(fleet.folder / device / "slots").current_release()
