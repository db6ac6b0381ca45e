"""The state machine of a rollout: when the next stage opens, and when the rollout halts, ends or is rolled back.

============  ==========================================  ==================================================
status        meaning                                     next status
============  ==========================================  ==================================================
RUNNING       the release is sent to the open stages; a   PAUSED, HALTED, DONE, ROLLING_BACK
              stage opens once the one before succeeded
PAUSED        no further device gets the release          RUNNING, HALTED, ROLLING_BACK
DONE          every stage has succeeded                   HALTED, ROLLING_BACK
HALTED        a stage has failed or an operator halted    ROLLING_BACK
              it; devices not healthy yet have to go back
ROLLING_BACK  every device has to go back                 ROLLED_BACK, once all of them are back
ROLLED_BACK   every device runs its previous model        none
============  ==========================================  ==================================================

A device goes from PENDING to SENT, TRYING and HEALTHY, or to ROLLED_BACK when it reports that it went back. A device
that is silent for the health interval while SENT or TRYING becomes FAILED and is told to go back; while it fetches what
it was SENT, it is not silent. It stays FAILED, whatever it reports later, until it reports that it is back. A HEALTHY
device whose files were damaged reports that it is TRYING, with a reason, and is sent the release again.

All functions here are pure; :mod:`.desk` stores the state and sends the messages.
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
_SENDING = {RolloutStatus.RUNNING, RolloutStatus.DONE}


class Command(str, Enum):
    """A command of an operator to a rollout."""

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
"""For each command, the statuses in which it is allowed, and the status that it leads to."""


@dataclass(frozen=True, slots=True)
class Member:
    """A device of the rollout: its stage, and its status since ``since_s``, in seconds on a monotonic clock."""

    stage: int
    status: Status = Status.PENDING
    since_s: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RolloutState:
    """Everything that determines the next step; ``stage`` is the index of the newest open stage, from 0."""

    plan: Plan
    members: Mapping[str, Member]
    status: RolloutStatus = RolloutStatus.RUNNING
    stage: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """The release is about to be sent to these devices."""

    devices: frozenset[str]


@dataclass(frozen=True, slots=True)
class Reported:
    """A device reports that it tries the release, is healthy with it, or went back."""

    device: str
    status: Status
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""


Event = Told | Reported | Tick


class Duty(Enum):
    """What a device is to be sent: the release for the first time, or again, or that it has to go back."""

    FIRST = "first"
    AGAIN = "again"
    LEAVE = "leave"


def obeyed(status: RolloutStatus, command: Command) -> RolloutStatus:
    """The status that ``command`` leads to. Raises ``ConfigurationError`` if it is not allowed in ``status``."""
    before, after = _OBEYED[command]
    if status not in before:
        raise ConfigurationError(f"cannot {command.value} a rollout that is {status.value}")
    return after


def obeying(status: RolloutStatus) -> tuple[Command, ...]:
    """The commands that are allowed in ``status``."""
    return tuple(command for command, (before, _) in _OBEYED.items() if status in before)


def step(state: RolloutState, event: Event, now_s: float) -> RolloutState:
    """The state after ``event``, at ``now_s`` on the monotonic clock."""
    match event:
        case Told(devices):
            told = {name for name in devices & state.members.keys() if state.members[name].status is Status.PENDING}
            state = _changed(state, dict.fromkeys(told, (Status.SENT, "")), now_s)
        case Reported(device, status, reason):
            state = _changed(state, _heard(state, device, status, reason), now_s)
        case Tick():
            late_s = now_s - state.plan.health_interval_s
            late = [name for name, it in state.members.items() if it.status in _ASKED and it.since_s <= late_s]
            reason = f"silent for {state.plan.health_interval_s:g} s"
            state = _changed(state, dict.fromkeys(late, (Status.FAILED, reason)), now_s)
    return _settled(state, now_s)


def unheard(state: RolloutState, now_s: float) -> RolloutState:
    """The state after a period in which no device could be heard: health intervals begin again."""
    members = {
        name: replace(member, since_s=now_s) if member.status in _ASKED else member
        for name, member in state.members.items()
    }
    return replace(state, members=members)


def fetching(state: RolloutState, device: str, now_s: float) -> RolloutState:
    """The state after a device asked for a part of a blob: while it fetches the release, it is not silent.

    That is noted ten times in a health interval at most.
    """
    member = state.members.get(device)
    if member is None or member.status is not Status.SENT:
        return state
    if now_s - member.since_s < state.plan.health_interval_s / 10:
        return state
    return replace(state, members={**state.members, device: replace(member, since_s=now_s)})


def due(state: RolloutState, duty: Duty) -> frozenset[str]:
    """The devices that are to be sent this."""
    return frozenset(name for name, member in state.members.items() if _duty_to(state, member) is duty)


def duty_to(state: RolloutState, device: str) -> Duty | None:
    """What to send a device, if anything; repeating a message does no harm."""
    member = state.members.get(device)
    return None if member is None else _duty_to(state, member)


def staged(groups: Mapping[str, str], stages: Iterable[str], salt: str) -> dict[str, int]:
    """The index of the first stage that each device is in; devices in no stage are left out.

    ``groups`` maps devices to their groups. ``salt`` seeds a random order of the devices, and a share takes them from
    its beginning: a larger share contains every smaller one, and no share is empty. Raises ``ConfigurationError`` for a
    stage that is neither a share nor a group, for shares that do not rise, and for an empty group.
    """
    order = sorted(groups, key=lambda device: hashlib.sha256(f"{salt} {device}".encode()).digest())
    found, widest = dict[str, int](), 0.0
    for number, stage in enumerate(stages):
        share = _share_of(stage)
        if share is None:
            chosen = [device for device in order if groups[device] == check_name(stage, "group")]
            if not chosen:
                raise ConfigurationError(
                    f"stage {stage!r} has no devices: use a group that has some, or a share like 10%"
                )
        elif share <= widest:
            raise ConfigurationError(f"stage {stage!r} is not larger than the share before it: shares have to rise")
        else:
            widest, chosen = share, order[: math.ceil(share * len(order))]
        for device in chosen:
            found.setdefault(device, number)
    return found


def _duty_to(state: RolloutState, member: Member) -> Duty | None:
    status = member.status
    is_back = state.status is RolloutStatus.ROLLING_BACK and (status in _ASKED or status is Status.HEALTHY)
    if status is Status.FAILED or is_back:
        return Duty.LEAVE
    if status in _ASKED:
        return Duty.AGAIN
    is_open = state.status in _SENDING and member.stage <= state.stage
    return Duty.FIRST if status is Status.PENDING and is_open else None


def _share_of(stage: str) -> float | None:
    """The share, above 0 and up to 1; ``None`` for a group's name."""
    percent = _PERCENT.fullmatch(stage)
    if percent is None:
        return None
    share = float(percent[1]) / 100
    if not 0 < share <= 1:
        raise ConfigurationError(f"stage {stage!r} is out of range: use more than 0% and at most 100%")
    return share


def _heard(state: RolloutState, device: str, status: Status, reason: str) -> dict[str, tuple[Status, str]]:
    """The changes by a report. A late one changes nothing, unless it says that the device is back, or has lost it.

    The latter is that a healthy device tries the release again, with a reason. It has no effect in a rollout that no
    longer sends its release.
    """
    member = state.members.get(device)
    if member is not None and member.status is Status.HEALTHY and status is Status.TRYING and reason:
        return {device: (status, reason)} if state.status in {_RUNNING, _PAUSED, RolloutStatus.DONE} else {}
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
    """The state once the statuses of its devices have taken effect."""
    if state.status in {_RUNNING, _PAUSED, RolloutStatus.DONE}:
        state = _judged(state)
    if state.status is RolloutStatus.HALTED:
        asked = [name for name, member in state.members.items() if member.status in _ASKED]
        state = _changed(state, dict.fromkeys(asked, (Status.FAILED, "the rollout was halted")), now_s)
    if state.status is RolloutStatus.ROLLING_BACK and not due(state, Duty.LEAVE):
        state = replace(state, status=RolloutStatus.ROLLED_BACK)
    return state


def _judged(state: RolloutState) -> RolloutState:
    """The state, halted if an open stage has failed; otherwise with every further stage open that may open."""
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
