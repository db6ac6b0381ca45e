"""The round machine: who decides, and that nothing changes a decision."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.rounds.machine import (
    DeviceFailed,
    DeviceLost,
    DevicePaused,
    Event,
    Offered,
    RoundState,
    Tick,
    UpdateAccepted,
    step,
)
from coordinator.store.states import Outcome, Phase

DEADLINE_S = 600.0
OPEN = RoundState("news", 1, "b" * 64, quorum=2, deadline_s=DEADLINE_S)


def after(*events: Event, state: RoundState = OPEN) -> RoundState:
    for event in events:
        state = step(state, event)
    return state


def asked(*devices: str) -> RoundState:
    return after(*map(Offered, devices))


def test_round_closes_when_all_have_answered_with_the_quorum() -> None:
    events = [UpdateAccepted("a"), DeviceFailed("b"), UpdateAccepted("c")]
    state = after(*events[:2], state=asked("a", "b", "c"))
    assert state.phase is Phase.COLLECTING
    assert after(events[2], state=state).phase is Phase.CLOSED


def test_round_is_abandoned_when_all_have_answered_below_the_quorum() -> None:
    assert after(UpdateAccepted("a"), DeviceLost("b"), state=asked("a", "b")).phase is Phase.ABANDONED


@pytest.mark.parametrize(("updates", "phase"), [(1, Phase.ABANDONED), (2, Phase.CLOSED)])
def test_deadline_decides_by_the_quorum(updates: int, phase: Phase) -> None:
    state = after(*map(UpdateAccepted, "ab"[:updates]), state=asked("a", "b", "c"))
    assert after(Tick(DEADLINE_S - 0.001), state=state).phase is Phase.COLLECTING
    assert after(Tick(DEADLINE_S), state=state).phase is phase


def test_device_that_pauses_is_not_waited_for_where_the_quorum_is_there() -> None:
    events = [DevicePaused("a"), UpdateAccepted("b"), UpdateAccepted("c")]
    assert after(*events, state=asked("a", "b", "c")).phase is Phase.CLOSED


def test_device_that_pauses_is_waited_for_where_the_quorum_needs_it() -> None:
    state = after(DevicePaused("a"), UpdateAccepted("b"), state=asked("a", "b"))
    assert state.phase is Phase.COLLECTING
    assert after(Tick(DEADLINE_S), state=state).phase is Phase.ABANDONED
    assert after(Offered("a"), UpdateAccepted("a"), state=state).phase is Phase.CLOSED


def test_device_that_pauses_may_be_asked_again() -> None:
    state = after(DevicePaused("a"), Offered("a"), state=asked("a", "b"))
    assert state.offers["a"] is Outcome.OFFERED


def test_round_without_offers_waits_for_its_deadline() -> None:
    assert after(Tick(1.0)).phase is Phase.COLLECTING
    assert after(Tick(DEADLINE_S)).phase is Phase.ABANDONED


def test_update_of_a_device_given_up_counts_while_the_round_collects() -> None:
    state = after(DeviceLost("a"), UpdateAccepted("a"), state=asked("a", "b"))
    assert state.offers == {"a": Outcome.UPDATED, "b": Outcome.OFFERED}


def test_update_once_accepted_stays() -> None:
    state = after(UpdateAccepted("a"), DeviceLost("a"), DeviceFailed("a"), Offered("a"), state=asked("a", "b"))
    assert state.offers["a"] is Outcome.UPDATED


def test_device_that_failed_is_not_asked_again() -> None:
    assert after(DeviceFailed("a"), Offered("a"), state=asked("a", "b")).offers["a"] is Outcome.FAILED


def test_device_that_was_not_asked_changes_nothing() -> None:
    state = asked("a")
    assert after(UpdateAccepted("x"), DeviceFailed("y"), DeviceLost("z"), state=state) == state


DEVICES = st.sampled_from("abcd")
EVENTS = st.one_of(
    *(DEVICES.map(kind) for kind in (Offered, UpdateAccepted, DeviceFailed, DeviceLost)),
    st.floats(0, 2 * DEADLINE_S).map(Tick),
)


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=40), st.integers(1, 4))
def test_any_events_in_any_order_keep_the_invariants(events: list[Event], quorum: int) -> None:
    state = replace(OPEN, quorum=quorum)
    for event in events:
        before, state = state, step(state, event)
        assert step(state, event) == state, "an event that comes twice changes nothing the second time"
        if before.phase is not Phase.COLLECTING:
            assert state == before, "what is decided never changes"
        delivered = {device for device, outcome in before.offers.items() if outcome is Outcome.UPDATED}
        assert all(state.offers[device] is Outcome.UPDATED for device in delivered), "no update is lost"
        assert before.offers.keys() <= state.offers.keys()
        is_late = isinstance(event, Tick) and event.now_s >= DEADLINE_S
        if state.phase is Phase.COLLECTING:
            assert not state.is_answered
            assert not is_late, "the deadline decides"
        else:
            assert (state.phase is Phase.CLOSED) == (state.updates >= quorum)


@settings(max_examples=200)
@given(st.permutations("abcd"), st.sets(DEVICES), st.integers(1, 4))
def test_verdict_does_not_depend_on_the_order_of_answers(order: list[str], delivering: set[str], quorum: int) -> None:
    state = replace(asked(*"abcd"), quorum=quorum)
    answers = [UpdateAccepted(device) if device in delivering else DeviceFailed(device) for device in order]
    assert after(*answers, state=state).phase is (Phase.CLOSED if len(delivering) >= quorum else Phase.ABANDONED)
