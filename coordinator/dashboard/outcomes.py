"""The words and marks with which pages show the states that are stored.

A mark can be told by its shape alone; its colour only repeats that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from coordinator.store.records import AssignmentRecord, OfferRecord, RoundRecord
from coordinator.store.states import AssignmentStatus, Outcome, Phase, RolloutStatus, TaskStatus


class Mark(str, Enum):
    """The shapes of marks."""

    GOOD = "good"
    BUSY = "busy"
    IDLE = "idle"
    HELD = "held"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Word:
    """A state in words; ``detail`` is the reason, in the words of whoever reported it."""

    mark: Mark
    text: str
    detail: str = ""


_TASKS = {
    TaskStatus.PENDING: Word(Mark.IDLE, "waiting"),
    TaskStatus.RUNNING: Word(Mark.BUSY, "running"),
    TaskStatus.PAUSED: Word(Mark.HELD, "paused"),
    TaskStatus.STOPPED: Word(Mark.HELD, "stopped"),
    TaskStatus.DONE: Word(Mark.GOOD, "done"),
    TaskStatus.FAILED: Word(Mark.BAD, "failed"),
}
_PHASES = {
    Phase.COLLECTING: Word(Mark.BUSY, "collecting"),
    Phase.CLOSED: Word(Mark.GOOD, "closed"),
    Phase.ABANDONED: Word(Mark.BAD, "abandoned"),
}
_ROLLOUTS = {
    RolloutStatus.RUNNING: Word(Mark.BUSY, "running"),
    RolloutStatus.PAUSED: Word(Mark.HELD, "paused"),
    RolloutStatus.HALTED: Word(Mark.BAD, "halted"),
    RolloutStatus.DONE: Word(Mark.GOOD, "done"),
    RolloutStatus.ROLLING_BACK: Word(Mark.BUSY, "rolling back"),
    RolloutStatus.ROLLED_BACK: Word(Mark.HELD, "rolled back"),
}
_STANDING = {
    AssignmentStatus.PENDING: Word(Mark.IDLE, "pending"),
    AssignmentStatus.SENT: Word(Mark.BUSY, "sent"),
    AssignmentStatus.TRYING: Word(Mark.BUSY, "on trial"),
    AssignmentStatus.HEALTHY: Word(Mark.GOOD, "healthy"),
    AssignmentStatus.FAILED: Word(Mark.BAD, "failed"),
    AssignmentStatus.ROLLED_BACK: Word(Mark.BAD, "rolled back"),
}


def word_of_task(status: TaskStatus) -> Word:
    """The status of a task."""
    return _TASKS[status]


def word_of_round(known: RoundRecord) -> Word:
    """The phase of a round."""
    return _PHASES[known.phase]


def word_of_rollout(status: RolloutStatus) -> Word:
    """The status of a rollout."""
    return _ROLLOUTS[status]


def word_of_approval(missing: int, *, has_expired: bool) -> Word:
    """Whether a release that lacks ``missing`` signatures may go out."""
    if has_expired:
        return Word(Mark.BAD, "expired")
    if missing > 0:
        return Word(Mark.IDLE, f"lacks {missing} signature{'s' if missing > 1 else ''}")
    return Word(Mark.GOOD, "approved")


def word_of_standing(status: AssignmentStatus) -> Word:
    """A device's status in a rollout."""
    return _STANDING[status]


def word_of_release(known: AssignmentRecord) -> Word:
    """A device's status in a rollout, with the reason or the detail that it reported."""
    word = _STANDING[known.status]
    return Word(word.mark, word.text, known.reason or (known.report.detail if known.report else ""))


def word_of_offer(known: OfferRecord, *, is_open: bool) -> Word:
    """The outcome of an offer; ``is_open`` while its round is still collecting."""
    if known.outcome is Outcome.UPDATED:
        return Word(Mark.GOOD, "delivered")
    if known.outcome is Outcome.FAILED:
        text = known.failure.value.replace("-", " ") if known.failure else "failed"
        return Word(Mark.BAD, text, known.detail)
    if known.outcome is Outcome.PAUSED:
        return Word(Mark.HELD, "paused by its owner", known.detail)
    return Word(Mark.BUSY, "training") if is_open else Word(Mark.BAD, "no update in time")
