"""Rollouts: whatever devices, clocks and operators do, no more devices than earned it are told to run a release."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.delivery.rollout import (
    Command,
    Duty,
    Member,
    Reported,
    RolloutState,
    Tick,
    Told,
    due,
    duty_to,
    obeyed,
    obeying,
    staged,
    step,
)
from coordinator.store.plan import Plan
from coordinator.store.states import AssignmentStatus as Status
from coordinator.store.states import RolloutStatus
from edge_sdk.errors import ConfigurationError

INTERVAL_S = 10.0
SHARES = ("1%", "10%", "50%", "100%")
NAMES = st.integers(1, 60).map(lambda count: [f"d{number}" for number in range(count)])


def rollout(names: list[str], stages: tuple[str, ...] = SHARES, **plan: float) -> RolloutState:
    found = staged(dict.fromkeys(names, "default"), stages, "1")
    settled = Plan(stages=stages, health_interval_s=INTERVAL_S, **plan)
    return RolloutState(settled, {name: Member(stage) for name, stage in found.items()})


def told(state: RolloutState, now_s: float = 0.0) -> RolloutState:
    return step(state, Told(due(state, Duty.FIRST)), now_s)


def report(state: RolloutState, status: Status, *devices: str, now_s: float = 0.0) -> RolloutState:
    for device in devices:
        state = step(state, Reported(device, status, "why"), now_s)
    return state


class Rollouts(RuleBasedStateMachine):
    """Devices answer, or do not; time passes; an operator says what goes with where the rollout stands."""

    @initialize(names=NAMES, success=st.sampled_from((0.5, 0.9, 1.0)), error=st.sampled_from((0.1, 0.3, 1.0)))
    def start(self, names: list[str], success: float, error: float) -> None:
        self.state = rollout(names, success_share=success, error_share=error)
        self.now_s, self.was_halted = 0.0, False

    def move(self, state: RolloutState) -> None:
        assert state.stage >= self.state.stage, "stages only open"
        for stage in range(self.state.stage, state.stage):
            found = [it.status for it in state.members.values() if it.stage == stage]
            assert found.count(Status.HEALTHY) >= state.plan.success_share * len(found), "and once it was earned"
        new = {name for name, it in state.members.items() if self.state.members[name].status is Status.PENDING} & {
            name for name, it in state.members.items() if it.status is not Status.PENDING
        }
        assert not (new and self.was_halted), "a rollout that was halted goes to nobody new"
        self.state = state
        self.was_halted |= state.status is RolloutStatus.HALTED

    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        first = sorted(due(self.state, Duty.FIRST))
        if first:
            self.move(step(self.state, Told(frozenset(data.draw(st.sets(st.sampled_from(first))))), self.now_s))

    @rule(
        data=st.data(),
        status=st.sampled_from((Status.TRYING, Status.HEALTHY, Status.ROLLED_BACK)),
        reason=st.sampled_from(("", "damaged")),
    )
    def hear(self, data: st.DataObject, status: Status, reason: str) -> None:
        device = data.draw(st.sampled_from(sorted(self.state.members)))
        before = self.state.members[device].status
        self.move(step(self.state, Reported(device, status, reason), self.now_s))
        if before in {Status.FAILED, Status.ROLLED_BACK, Status.PENDING}:
            assert self.state.members[device].status in {before, Status.ROLLED_BACK}, "too late"

    @rule(seconds=st.floats(0, 2 * INTERVAL_S))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.move(step(self.state, Tick(), self.now_s))
        waiting = [it for it in self.state.members.values() if it.status in {Status.SENT, Status.TRYING}]
        assert all(self.now_s - it.since_s < INTERVAL_S for it in waiting)

    @rule(command=st.sampled_from(Command))
    def say(self, command: Command) -> None:
        try:
            status = obeyed(self.state.status, command)
        except ConfigurationError:
            assert command not in obeying(self.state.status)
            return
        assert command in obeying(self.state.status)
        if command is Command.ROLLBACK:
            self.was_halted = False
        self.move(step(RolloutState(self.state.plan, self.state.members, status, self.state.stage), Tick(), self.now_s))

    @invariant()
    def only_open_stages_are_told(self) -> None:
        if hasattr(self, "state"):
            for member in self.state.members.values():
                assert member.status is Status.PENDING or member.stage <= self.state.stage

    @invariant()
    def whom_to_tell_what_is_one_thing(self) -> None:
        if hasattr(self, "state"):
            whom = {duty: due(self.state, duty) for duty in Duty}
            for name in self.state.members:
                assert {duty for duty in Duty if name in whom[duty]} == {duty_to(self.state, name)} - {None}
            if self.state.status is RolloutStatus.ROLLED_BACK:
                assert not any(whom.values())
            if self.state.status in {RolloutStatus.HALTED, RolloutStatus.PAUSED, RolloutStatus.ROLLING_BACK}:
                assert not whom[Duty.FIRST]
            if self.state.status is RolloutStatus.HALTED:
                assert not whom[Duty.AGAIN]

    @precondition(lambda self: self.state.status is RolloutStatus.ROLLING_BACK)
    @rule()
    def everybody_comes_back(self) -> None:
        self.move(report(self.state, Status.ROLLED_BACK, *due(self.state, Duty.LEAVE), now_s=self.now_s))
        assert self.state.status is RolloutStatus.ROLLED_BACK
        assert not any(it.status in {Status.HEALTHY, Status.SENT} for it in self.state.members.values())


Rollouts.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestRollouts = Rollouts.TestCase


# -- whom


@given(NAMES, st.integers(0, 5))
def test_smaller_shares_are_in_larger_ones_and_none_is_empty(names: list[str], salt: int) -> None:
    groups = dict.fromkeys(names, "default")
    found = staged(groups, SHARES, str(salt))
    assert found == staged(dict(reversed(groups.items())), SHARES, str(salt))
    assert found.keys() == groups.keys()
    for stage, share in enumerate((0.01, 0.1, 0.5, 1.0)):
        up_to = sum(number <= stage for number in found.values())
        assert up_to == math.ceil(share * len(names))


def test_group_goes_first_and_a_share_is_of_all() -> None:
    groups = {f"d{number}": "canary" if number < 3 else "default" for number in range(10)}
    found = staged(groups, ("canary", "50%", "100%"), "1")
    assert {name for name, stage in found.items() if stage == 0} == {"d0", "d1", "d2"}
    assert {found[name] for name in groups} == {0, 1, 2}
    assert staged(groups, ("canary",), "1").keys() == {"d0", "d1", "d2"}


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        (("0%",), "is out of range"),
        (("101%",), "is out of range"),
        (("50%", "10%"), "have to rise"),
        (("nobody",), "has no devices"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        staged({"d": "default"}, stages, "1")


# -- when


def test_rollout_goes_on_as_devices_become_healthy() -> None:
    state = rollout([f"d{number}" for number in range(20)])
    for stage in range(4):
        assert state.stage == stage
        state = told(state)
        state = report(state, Status.HEALTHY, *due(state, Duty.AGAIN))
    assert state.status is RolloutStatus.DONE


def test_rollout_halts_at_the_error_threshold_and_who_is_not_healthy_goes_back() -> None:
    names = [f"d{number}" for number in range(10)]
    state = told(rollout(names, ("100%",), success_share=0.5, error_share=0.3))
    state = report(state, Status.HEALTHY, *names[:2])
    state = report(state, Status.ROLLED_BACK, *names[2:4])
    assert state.status is RolloutStatus.RUNNING
    state = report(state, Status.ROLLED_BACK, names[4])
    assert state.status is RolloutStatus.HALTED
    assert due(state, Duty.LEAVE) == {*names[5:]}
    assert {state.members[name].status for name in names[:2]} == {Status.HEALTHY}


def test_rollout_that_cannot_succeed_any_more_halts() -> None:
    state = told(rollout(["a", "b"], ("100%",), success_share=1.0, error_share=1.0))
    assert report(state, Status.ROLLED_BACK, "a").status is RolloutStatus.HALTED


def test_silent_device_fails_and_is_told_to_leave_whatever_it_says_later() -> None:
    state = step(told(rollout(["a"], ("100%",))), Tick(), INTERVAL_S)
    assert (state.members["a"].status, state.members["a"].reason) == (Status.FAILED, "silent for 10 s")
    state = report(state, Status.HEALTHY, "a")
    assert due(state, Duty.LEAVE) == {"a"}
    state = report(state, Status.ROLLED_BACK, "a")
    assert (state.members["a"].reason, due(state, Duty.LEAVE)) == ("silent for 10 s", frozenset())


def test_paused_rollout_tells_nobody_new_and_hears_those_that_were_told() -> None:
    state = told(rollout([f"d{number}" for number in range(100)]))
    paused = RolloutState(state.plan, state.members, RolloutStatus.PAUSED)
    heard = report(paused, Status.HEALTHY, *due(state, Duty.AGAIN))
    assert (heard.status, heard.stage, due(heard, Duty.FIRST)) == (RolloutStatus.PAUSED, 0, frozenset())
    resumed = step(RolloutState(heard.plan, heard.members, obeyed(heard.status, Command.RESUME)), Tick(), 1.0)
    assert resumed.stage == 1
    assert due(resumed, Duty.FIRST)


@pytest.mark.parametrize("status", [RolloutStatus.ROLLED_BACK, RolloutStatus.ROLLING_BACK])
@pytest.mark.parametrize("command", Command)
def test_rollout_that_goes_back_obeys_no_more(status: RolloutStatus, command: Command) -> None:
    with pytest.raises(ConfigurationError, match="cannot"):
        obeyed(status, command)
