"""A rollout: which devices are told to run a release now, which to leave it, and when it goes on, halts or goes back.

    RUNNING ─▶ DONE          one stage after the other, each once enough of the one before is healthy
       │         │
    PAUSED       │           tells nobody new; those that were told go on
       │         │
    HALTED ◀─────┤           too many have failed: nobody new for good; who has not shown to be healthy goes back
       └─────────┴─▶ ROLLING_BACK ─▶ ROLLED_BACK       everybody goes back

Of each device: PENDING ─▶ SENT ─▶ TRYING ─▶ HEALTHY, or ─▶ ROLLED_BACK by its own report. One that says nothing in time
is FAILED and stays so, whatever it says later but that it is back.

:func:`step`, :func:`unheard` and :func:`due` are pure; :mod:`.desk` keeps and sends.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from coordinator.store.plan import Plan
from coordinator.store.states import AssignmentStatus as Status
from coordinator.store.states import RolloutStatus
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.topics import check_name

_PERCENT = re.compile(r"(\d{1,3}(?:\.\d+)?)%")
_LOST = {Status.FAILED, Status.ROLLED_BACK}
_ASKED = {Status.SENT, Status.TRYING}


class Command(str, Enum):
    """What an operator says to a rollout."""

    PAUSE = "pause"
    RESUME = "resume"
    HALT = "halt"
    ROLLBACK = "rollback"


_RUNNING, _PAUSED = RolloutStatus.RUNNING, RolloutStatus.PAUSED
_OBEYED: Mapping[Command, tuple[frozenset[RolloutStatus], RolloutStatus]] = {
    Command.PAUSE: (frozenset({_RUNNING}), _PAUSED),
    Command.RESUME: (frozenset({_PAUSED}), _RUNNING),
    Command.HALT: (frozenset({_RUNNING, _PAUSED, RolloutStatus.DONE}), RolloutStatus.HALTED),
    Command.ROLLBACK: (
        frozenset({_RUNNING, _PAUSED, RolloutStatus.DONE, RolloutStatus.HALTED}),
        RolloutStatus.ROLLING_BACK,
    ),
}
"""From where a command leads where."""


@dataclass(frozen=True, slots=True)
class Member:
    """A device: from which stage on it is told, and where it stands since when, on a steady clock."""

    stage: int
    status: Status = Status.PENDING
    since_s: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RolloutState:
    """All that decides what happens next; ``stage`` is the last that is open."""

    plan: Plan
    members: Mapping[str, Member]
    status: RolloutStatus = RolloutStatus.RUNNING
    stage: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """These devices are about to be told to run the release."""

    devices: frozenset[str]


@dataclass(frozen=True, slots=True)
class Reported:
    """A device says that it tries, keeps or has left the release."""

    device: str
    status: Status
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""


Event = Told | Reported | Tick


@dataclass(frozen=True, slots=True)
class Due:
    """Whom to tell what: for the first time to run it, again, to leave it."""

    first: frozenset[str]
    again: frozenset[str]
    leave: frozenset[str]


def obeyed(status: RolloutStatus, command: Command) -> RolloutStatus:
    """Where ``command`` leads. ``ConfigurationError`` where it does not go with ``status``."""
    before, after = _OBEYED[command]
    if status not in before:
        raise ConfigurationError(f"a rollout that is {status.value} cannot {command.value}")
    return after


def obeying(status: RolloutStatus) -> tuple[Command, ...]:
    """What can be said to a rollout that stands so."""
    return tuple(command for command, (before, _) in _OBEYED.items() if status in before)


def step(state: RolloutState, event: Event, now_s: float) -> RolloutState:
    """The state after ``event``."""
    match event:
        case Told(devices):
            told = {name for name in devices & state.members.keys() if state.members[name].status is Status.PENDING}
            state = _changed(state, dict.fromkeys(told, (Status.SENT, "")), now_s)
        case Reported(device, status, reason):
            state = _changed(state, _heard(state, device, status, reason), now_s)
        case Tick():
            late_s = now_s - state.plan.health_interval_s
            late = [name for name, it in state.members.items() if it.status in _ASKED and it.since_s <= late_s]
            reason = f"no word within {state.plan.health_interval_s:g} s"
            state = _changed(state, dict.fromkeys(late, (Status.FAILED, reason)), now_s)
    return _settled(state, now_s)


def unheard(state: RolloutState, now_s: float) -> RolloutState:
    """The state after a time in which no device could be heard: intervals begin anew for all who owe an answer."""
    members = {
        name: replace(member, since_s=now_s) if member.status in _ASKED else member
        for name, member in state.members.items()
    }
    return replace(state, members=members)


def due(state: RolloutState) -> Due:
    """Whom to tell what, by the state alone: said again it does no harm."""
    is_open = state.status in {_RUNNING, RolloutStatus.DONE}
    is_back = state.status is RolloutStatus.ROLLING_BACK
    first, again, leave = set[str](), set[str](), set[str]()
    for name, member in state.members.items():
        if member.status is Status.FAILED or (is_back and member.status in {*_ASKED, Status.HEALTHY}):
            leave.add(name)
        elif member.status in _ASKED:
            again.add(name)
        elif member.status is Status.PENDING and is_open and member.stage <= state.stage:
            first.add(name)
    return Due(frozenset(first), frozenset(again), frozenset(leave))


def staged(groups: Mapping[str, str], stages: Iterable[str], salt: str) -> dict[str, int]:
    """For each device, by its group, the first stage that it is in; left out are those that are in none.

    A share is of the devices in an order that ``salt`` draws, so that larger ones hold the smaller, and none is empty.
    Raises ``ConfigurationError`` for what is neither a share nor a group, for shares that fall, and an empty group.
    """
    order = sorted(groups, key=lambda device: hashlib.sha256(f"{salt} {device}".encode()).digest())
    found, widest = dict[str, int](), 0.0
    for number, stage in enumerate(stages):
        share = _share_of(stage)
        if share is None:
            chosen = [device for device in order if groups[device] == check_name(stage, "group")]
            if not chosen:
                raise ConfigurationError(f"stage {stage!r} has no devices: name a group that has, or a share like 10%")
        elif share <= widest:
            raise ConfigurationError(f"stage {stage!r} is no more than the one before: shares have to rise")
        else:
            widest, chosen = share, order[: math.ceil(share * len(order))]
        for device in chosen:
            found.setdefault(device, number)
    return found


def _share_of(stage: str) -> float | None:
    """0..1; ``None`` for a name."""
    percent = _PERCENT.fullmatch(stage)
    if percent is None:
        return None
    share = float(percent[1]) / 100
    if not 0 < share <= 1:
        raise ConfigurationError(f"stage {stage!r} is no share: use more than 0% and at most 100%")
    return share


def _heard(state: RolloutState, device: str, status: Status, reason: str) -> dict[str, tuple[Status, str]]:
    """What a report changes: one that comes too late changes nothing, but that the device is back always counts."""
    member = state.members.get(device)
    if member is None or member.status in {Status.PENDING, Status.ROLLED_BACK, status}:
        return {}
    if status is Status.ROLLED_BACK:
        return {device: (status, member.reason or reason)}
    return {device: (status, reason)} if member.status in _ASKED else {}


def _changed(state: RolloutState, changes: Mapping[str, tuple[Status, str]], now_s: float) -> RolloutState:
    if not changes:
        return state
    members = {
        name: replace(state.members[name], status=status, reason=reason, since_s=now_s)
        for name, (status, reason) in changes.items()
    }
    return replace(state, members={**state.members, **members})


def _settled(state: RolloutState, now_s: float) -> RolloutState:
    """What follows from where the devices stand."""
    if state.status in {_RUNNING, _PAUSED, RolloutStatus.DONE}:
        state = _judged(state)
    if state.status is RolloutStatus.HALTED:
        asked = [name for name, member in state.members.items() if member.status in _ASKED]
        state = _changed(state, dict.fromkeys(asked, (Status.FAILED, "the rollout was halted")), now_s)
    if state.status is RolloutStatus.ROLLING_BACK and not due(state).leave:
        state = replace(state, status=RolloutStatus.ROLLED_BACK)
    return state


def _judged(state: RolloutState) -> RolloutState:
    """Halted, or with as many stages open as have earned it."""
    if any(_has_failed(state, stage) for stage in range(state.stage + 1)):
        return replace(state, status=RolloutStatus.HALTED)
    if state.status is _RUNNING and _has_succeeded(state, state.stage):
        if state.stage + 1 == len(state.plan.stages):
            return replace(state, status=RolloutStatus.DONE)
        return _judged(replace(state, stage=state.stage + 1))
    return state


def _statuses(state: RolloutState, stage: int) -> list[Status]:
    return [member.status for member in state.members.values() if member.stage == stage]


def _has_failed(state: RolloutState, stage: int) -> bool:
    found = _statuses(state, stage)
    lost, plan = sum(status in _LOST for status in found), state.plan
    return lost > 0 and (lost >= plan.error_share * len(found) or len(found) - lost < plan.success_share * len(found))


def _has_succeeded(state: RolloutState, stage: int) -> bool:
    found = _statuses(state, stage)
    return sum(status is Status.HEALTHY for status in found) >= state.plan.success_share * len(found)
