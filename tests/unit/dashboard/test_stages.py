"""The picture of a rollout's stages: a bar is its devices, and a word says how far each is."""

from __future__ import annotations

import pytest

from coordinator.dashboard.outcomes import Mark
from coordinator.dashboard.stages import Stage, stages_of
from coordinator.store.plan import Plan
from coordinator.store.records import RolloutRecord
from coordinator.store.states import AssignmentStatus as Status
from coordinator.store.states import RolloutStatus

TALLY = {
    (0, Status.HEALTHY): 6,
    (0, Status.TRYING): 1,
    (0, Status.SENT): 1,
    (0, Status.FAILED): 1,
    (0, Status.ROLLED_BACK): 1,
    (1, Status.PENDING): 30,
}


def shown(status: RolloutStatus = RolloutStatus.RUNNING, stage: int = 0) -> list[Stage]:
    plan = Plan(stages=("25%", "canary", "100%"), success_share=0.75)
    return stages_of(RolloutRecord(1, 1, "news", plan, status, stage, 0.0), TALLY)


def test_bar_is_as_long_as_there_are_devices() -> None:
    first, second, third = shown()
    assert [(it.kind, it.left, it.width) for it in first.bar] == [
        ("healthy", 0, 60),
        ("trying", 60, 20),
        ("lost", 80, 20),
    ]
    assert [(it.kind, it.left, it.width) for it in second.bar] == [("waiting", 0, 100)]
    assert (third.bar, third.devices, third.standing) == ((), 0, ())
    assert (first.devices, first.needed) == (10, 75)
    assert [(word.text, count) for word, count in first.standing] == [
        *(("healthy", 6), ("on trial", 1), ("sent", 1), ("failed", 1), ("rolled back", 1)),
    ]


@pytest.mark.parametrize(
    ("status", "stage", "words"),
    [
        (RolloutStatus.RUNNING, 0, ["running", "not open yet", "not open yet"]),
        (RolloutStatus.PAUSED, 1, ["passed", "paused", "not open"]),
        (RolloutStatus.HALTED, 1, ["passed", "halted", "not open"]),
        (RolloutStatus.DONE, 2, ["passed", "passed", "done"]),
        (RolloutStatus.ROLLING_BACK, 1, ["rolling back", "rolling back", "not open"]),
        (RolloutStatus.ROLLED_BACK, 2, ["rolled back"] * 3),
    ],
)
def test_stage_says_how_far_it_is(status: RolloutStatus, stage: int, words: list[str]) -> None:
    found = shown(status, stage)
    assert [it.word.text for it in found] == words
    assert all((it.word.mark is Mark.IDLE) is ("not open" in it.word.text) for it in found)
