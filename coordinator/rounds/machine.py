"""What becomes of a round: a pure function of what was offered and of what came back.

    COLLECTING ──everybody answered, or deadline──▶ CLOSED      with at least the quorum of updates
              └──everybody answered, or deadline──▶ ABANDONED   with fewer

:func:`step` takes a state and an event and returns the next state; once decided, a round never changes. Events may come
twice and in any order. A device that was given up may still answer while the round collects; an update is final, unless
its device is revoked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from coordinator.store.states import Outcome, Phase

MAX_ABANDONED = 5
"""So many rounds in a row that come to nothing, and a task is given up."""


@dataclass(frozen=True, slots=True)
class RoundState:
    """One round of one task. ``deadline_s`` is on the clock that :class:`Tick` reads."""

    task: str
    number: int
    base_version: str
    quorum: int
    deadline_s: float
    phase: Phase = Phase.COLLECTING
    offers: Mapping[str, Outcome] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        """How many devices have delivered."""
        return sum(outcome is Outcome.UPDATED for outcome in self.offers.values())

    @property
    def is_answered(self) -> bool:
        """Whether devices were asked and none is waited for; for paused ones, only while the quorum needs them."""
        outcomes = {*self.offers.values()}
        is_needed = Outcome.PAUSED in outcomes and self.updates < self.quorum
        return bool(outcomes) and Outcome.OFFERED not in outcomes and not is_needed


@dataclass(frozen=True, slots=True)
class Offered:
    """A device was asked to train in this round."""

    device: str


@dataclass(frozen=True, slots=True)
class UpdateAccepted:
    """A device's update was admitted and is durable."""

    device: str


@dataclass(frozen=True, slots=True)
class DeviceFailed:
    """A device declined, gave up, or sent an update that was rejected."""

    device: str


@dataclass(frozen=True, slots=True)
class DevicePaused:
    """A device's owner does not let it work now; it may go on while the round collects."""

    device: str


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """A device has been offline for too long."""

    device: str


@dataclass(frozen=True, slots=True)
class DeviceRevoked:
    """A device no longer belongs to the fleet; what it has delivered does not count."""

    device: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""

    now_s: float


OfDevice = Offered | UpdateAccepted | DeviceFailed | DevicePaused | DeviceLost | DeviceRevoked
Event = OfDevice | Tick
_OUTCOMES = {
    UpdateAccepted: Outcome.UPDATED,
    DeviceFailed: Outcome.FAILED,
    DevicePaused: Outcome.PAUSED,
    DeviceLost: Outcome.FAILED,
    DeviceRevoked: Outcome.FAILED,
}


def step(state: RoundState, event: Event) -> RoundState:
    """The round after ``event``; devices that were not offered anything change nothing."""
    if state.phase is not Phase.COLLECTING:
        return state
    if isinstance(event, Tick):
        is_over = state.is_answered or event.now_s >= state.deadline_s
    else:
        state = _noted(state, event)
        is_over = state.is_answered
    return replace(state, phase=_verdict(state)) if is_over else state


def _verdict(state: RoundState) -> Phase:
    return Phase.CLOSED if state.updates >= state.quorum else Phase.ABANDONED


def _noted(state: RoundState, event: OfDevice) -> RoundState:
    known = state.offers.get(event.device)
    outcome: Outcome
    if isinstance(event, Offered):
        outcome = Outcome.OFFERED if known is None or known is Outcome.PAUSED else known
    elif known is None or (known is Outcome.UPDATED and not isinstance(event, DeviceRevoked)):
        return state
    else:
        outcome = _OUTCOMES[type(event)]
    return replace(state, offers={**state.offers, event.device: outcome})
