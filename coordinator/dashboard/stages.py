"""A rollout's stages as bars: the shares of a stage's devices that are healthy, under way, pending, and lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.dashboard.outcomes import Mark, Word, word_of_rollout, word_of_standing
from coordinator.store.records import RolloutRecord
from coordinator.store.states import AssignmentStatus, RolloutStatus

_KINDS = {
    "healthy": (AssignmentStatus.HEALTHY,),
    "trying": (AssignmentStatus.TRYING, AssignmentStatus.SENT),
    "waiting": (AssignmentStatus.PENDING,),
    "lost": (AssignmentStatus.FAILED, AssignmentStatus.ROLLED_BACK),
}
"""The parts of a bar from left to right, with the statuses that each counts."""
_GOING_BACK = (RolloutStatus.ROLLING_BACK, RolloutStatus.ROLLED_BACK)
Tally = Mapping[tuple[int, AssignmentStatus], int]
"""The number of devices by stage and status."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a bar, by its kind; ``left`` and ``width`` are in percent of the bar."""

    kind: str
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a rollout, with its own devices only, which are in no earlier stage, and their statuses."""

    name: str
    word: Word
    devices: int
    standing: tuple[tuple[Word, int], ...]
    bar: tuple[Stretch, ...]
    needed: float
    """The percentage of its devices that have to be healthy before the next stage opens."""


def stages_of(known: RolloutRecord, tally: Tally) -> list[Stage]:
    """Every stage of a rollout's plan."""
    return [_stage(known, number, tally) for number in range(len(known.plan.stages))]


def _stage(known: RolloutRecord, number: int, tally: Tally) -> Stage:
    found = {status: tally.get((number, status), 0) for status in AssignmentStatus}
    return Stage(
        known.plan.stages[number],
        _word(known, number),
        sum(found.values()),
        tuple((word_of_standing(it), found[it]) for statuses in _KINDS.values() for it in statuses if found[it]),
        _bar(found),
        100 * known.plan.success_share,
    )


def _word(known: RolloutRecord, number: int) -> Word:
    if number > known.stage:
        return Word(Mark.IDLE, "not open yet" if known.status is RolloutStatus.RUNNING else "not open")
    if number < known.stage and known.status not in _GOING_BACK:
        return Word(Mark.GOOD, "passed")
    return word_of_rollout(known.status)


def _bar(found: Mapping[AssignmentStatus, int]) -> tuple[Stretch, ...]:
    total, left = sum(found.values()), 0.0
    stretches = list[Stretch]()
    for kind, statuses in _KINDS.items():
        width = 100 * sum(found[status] for status in statuses) / total if total else 0.0
        if width:
            stretches.append(Stretch(kind, round(left, 2), round(width, 2)))
        left += width
    return tuple(stretches)
