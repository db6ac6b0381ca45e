"""The agent's decisions: a table of what happens in each phase, and what is done about it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from edge_sdk.agent import decisions
from edge_sdk.agent.decisions import AgentState, Phase, step
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart
from edge_sdk.protocol.messages import (
    Announce,
    BlobEntry,
    Declined,
    Failure,
    Offer,
    Part,
    Receipt,
    Recipe,
    Release,
    Standing,
    TrainingReport,
    UpdateReady,
    Verdict,
    Wait,
)
from edge_sdk.protocol.releases import Assignment, Order, ReleasedModel

WEIGHTS = BlobEntry(part=Part.WEIGHTS, digest="a" * 64, size_bytes=10)
FROZEN = BlobEntry(part=Part.FROZEN, digest="b" * 64, size_bytes=10)
MODEL = BlobEntry(part=Part.INFERENCE_MODEL, digest="c" * 64, size_bytes=10)
RECIPE = Recipe(learning_rate=1e-4, batch_size=4, epochs=1, max_tokens=16)
IDLE = AgentState(ready_interval_s=10.0)


def an_offer(number: int = 1) -> Offer:
    return Offer(
        task="t",
        round=number,
        base_version="d" * 64,
        architecture=Architecture("bert", 1, 1, 4, 4, 4, 10, 16, 2),
        submodel=Submodel((0,), (1,), (4,)),
        part=TrainablePart.NO_EMBEDDINGS,
        labels=("x", "y"),
        recipe=RECIPE,
        deadline_s=60.0,
        predicted_memory_bytes=1,
        manifest=(WEIGHTS, FROZEN),
    )


def an_update(number: int = 1) -> UpdateReady:
    report = TrainingReport(
        samples=1,
        steps=1,
        loss_first=1.0,
        loss_last=0.5,
        seconds=1.0,
        peak_memory_bytes=1,
        downloaded_bytes=1,
        uploaded_bytes=1,
    )
    return UpdateReady(update_id="e" * 64, task="t", round=number, base_version="d" * 64, update=WEIGHTS, report=report)


def a_release(number: int = 1) -> Order:
    model = ReleasedModel(
        release=number,
        task="t",
        submodel=Submodel((0,), (1,), (4,)),
        labels=("x", "y"),
        max_tokens=16,
        manifest=(MODEL,),
    )
    return Order(an_assignment(number, "m1"), model)


def an_assignment(number: int, export: str | None) -> Assignment:
    return Assignment(
        number=number,
        fleet="f",
        device="d",
        group="g",
        task="t",
        release=number,
        manifest="d" * 64,
        export=export,
        expires_s=1.0,
    )


def advance(state: AgentState, *events: decisions.Event) -> decisions.Next:
    """All events at time 100, effects of all of them."""
    effects: tuple[decisions.Effect, ...] = ()
    for event in events:
        state, more = step(state, event, 100.0)
        effects += more
    return state, effects


def test_connected_idle_says_hello_resends_and_asks_for_work() -> None:
    state, effects = advance(IDLE, decisions.Connected())
    assert effects == (decisions.SayHello(), decisions.ResendOutbox(), decisions.SayReady())
    assert state.ready_due_s == 110.0


def test_coordinator_that_connects_anew_gets_what_it_may_have_missed() -> None:
    here, back = (decisions.Received(Announce(session=session)) for session in (7, 8))
    connected, _ = advance(IDLE, decisions.Connected())
    state, effects = advance(connected, here, here)
    assert not effects
    assert advance(state, back)[1] == (decisions.ResendOutbox(), decisions.SayReady())
    busy, _ = advance(state, decisions.Received(an_offer()))
    assert advance(busy, back)[1] == (decisions.ResendOutbox(),)


def test_coordinator_that_comes_after_the_device_is_asked_at_once() -> None:
    connected, _ = advance(IDLE, decisions.Connected())
    announced = decisions.Received(Announce(session=7))
    state, effects = step(connected, announced, 105.0)
    assert effects == (decisions.ResendOutbox(), decisions.SayReady())
    assert state.ready_due_s == 115.0
    assert not step(state, announced, 106.0)[1]
    heard, _ = step(connected, decisions.Received(Wait(retry_after_s=10.0)), 101.0)
    assert not step(heard, announced, 105.0)[1]


def test_hello_is_said_again_until_the_coordinator_has_answered() -> None:
    state, _ = advance(IDLE, decisions.Connected(), decisions.Received(Announce(session=7)))
    asked, effects = step(state, decisions.Tick(), 110.0)
    assert effects == (decisions.SayHello(), decisions.SayReady())
    heard, _ = step(asked, decisions.Received(Wait(retry_after_s=10.0)), 111.0)
    assert step(heard, decisions.Tick(), 121.0)[1] == (decisions.SayReady(),)
    assert advance(heard, decisions.Connected())[1][0] == decisions.SayHello()


def test_offer_with_missing_blobs_fetches_only_those() -> None:
    state, effects = advance(IDLE, decisions.Received(an_offer(), present=frozenset({FROZEN.digest})))
    assert state.phase is Phase.FETCHING
    assert effects == (decisions.Fetch((WEIGHTS,)),)


def test_offer_with_all_blobs_present_trains_at_once() -> None:
    state, effects = advance(IDLE, decisions.Received(an_offer(), frozenset({FROZEN.digest, WEIGHTS.digest})))
    assert state.phase is Phase.TRAINING
    assert effects == (decisions.Train(an_offer()),)


def test_last_blob_fetched_starts_training() -> None:
    state, effects = advance(
        IDLE,
        decisions.Received(an_offer()),
        decisions.BlobFetched(FROZEN.digest),
        decisions.BlobFetched(WEIGHTS.digest),
    )
    assert state.phase is Phase.TRAINING
    assert effects[-1] == decisions.Train(an_offer())


def test_offer_repeated_changes_nothing() -> None:
    state, _ = advance(IDLE, decisions.Received(an_offer()))
    assert step(state, decisions.Received(an_offer()), 100.0) == (state, ())


def test_offer_of_a_later_round_replaces_the_training_under_way() -> None:
    state, _ = advance(IDLE, decisions.Received(an_offer(), frozenset({FROZEN.digest, WEIGHTS.digest})))
    state, effects = advance(state, decisions.Received(an_offer(2)))
    assert effects == (decisions.StopTraining(), decisions.Fetch((WEIGHTS, FROZEN)))
    assert state.offer == an_offer(2)


def test_update_stored_goes_out_through_the_outbox_and_its_offer_becomes_stale() -> None:
    training, _ = advance(IDLE, decisions.Received(an_offer(), frozenset({FROZEN.digest, WEIGHTS.digest})))
    state, effects = advance(training, decisions.UpdateStored(an_update()))
    assert (state.phase, effects) == (Phase.IDLE, (decisions.ResendOutbox(),))
    assert advance(state, decisions.Received(an_offer())) == (state, (decisions.ResendOutbox(),))


def test_update_stored_waits_the_usual_interval_before_it_asks_again() -> None:
    training, _ = advance(IDLE, decisions.Received(an_offer(), frozenset({FROZEN.digest, WEIGHTS.digest})))
    state, _ = step(training, decisions.UpdateStored(an_update()), 100.0)
    assert step(state, decisions.Tick(), 100.0 + IDLE.ready_interval_s - 1)[1] == ()
    assert step(state, decisions.Tick(), 100.0 + IDLE.ready_interval_s)[1] == (decisions.SayReady(),)


def test_receipt_settles_and_asks_for_more() -> None:
    receipt = Receipt(update_id="e" * 64, verdict=Verdict.ACCEPTED)
    _, effects = advance(IDLE, decisions.Received(receipt))
    assert effects == (decisions.Settle(receipt), decisions.SayReady())


def test_training_failed_is_declined_with_its_reason_and_peak() -> None:
    training, _ = advance(IDLE, decisions.Received(an_offer(), frozenset({FROZEN.digest, WEIGHTS.digest})))
    state, effects = advance(training, decisions.TrainingFailed(Failure.OUT_OF_MEMORY, "over", 5))
    declined = Declined(task="t", round=1, failure=Failure.OUT_OF_MEMORY, detail="over", peak_memory_bytes=5)
    assert (state.phase, effects) == (Phase.IDLE, (decisions.Publish(declined),))


@pytest.mark.parametrize(
    ("failure", "asks"),
    [(Failure.OUT_OF_MEMORY, (decisions.SayReady(),)), (Failure.TRAINING, ())],
    ids=["memory", "other"],
)
def test_device_out_of_memory_asks_for_less_at_once(failure: Failure, asks: tuple[decisions.Effect, ...]) -> None:
    training, _ = advance(IDLE, decisions.Received(an_offer(), frozenset({FROZEN.digest, WEIGHTS.digest})))
    state, _ = advance(training, decisions.TrainingFailed(failure, "why"))
    assert advance(state, decisions.Tick())[1] == asks


def test_training_failed_after_it_was_given_up_says_nothing() -> None:
    assert advance(IDLE, decisions.TrainingFailed(Failure.TRAINING, "late")) == (IDLE, ())


def test_blob_that_cannot_be_had_declines_the_offer() -> None:
    fetching, _ = advance(IDLE, decisions.Received(an_offer()))
    state, effects = advance(fetching, decisions.BlobFailed(WEIGHTS.digest, "gone"))
    assert state.phase is Phase.IDLE
    assert effects == (decisions.Publish(Declined(task="t", round=1, failure=Failure.TRANSFER, detail="gone")),)


def test_blob_that_the_disk_has_no_room_for_declines_the_offer_by_that_name_and_reports_the_release() -> None:
    releasing, _ = advance(IDLE, decisions.ReleaseTrusted(a_release()), decisions.Received(an_offer()))
    failures = [decisions.BlobFailed(digest, "full", Failure.STORAGE) for digest in (WEIGHTS.digest, MODEL.digest)]
    state, effects = advance(releasing, *failures)
    report = a_release().report(Standing.ROLLED_BACK, "full")
    declined = Declined(task="t", round=1, failure=Failure.STORAGE, detail="full")
    assert effects == (decisions.Publish(declined), decisions.Publish(report))
    assert decisions.needed(state) == ()


def test_blobs_of_the_offer_and_of_a_coming_release_are_needed_until_both_are_done() -> None:
    state, _ = advance(IDLE, decisions.ReleaseTrusted(a_release()), decisions.Received(an_offer()))
    assert decisions.needed(state) == (WEIGHTS, FROZEN, MODEL)
    state, _ = advance(state, decisions.TrainingFailed(Failure.TRAINING, "why"))
    assert decisions.needed(state) == (MODEL,)
    state, _ = advance(state, decisions.ReleaseTried(a_release().report(Standing.HEALTHY)))
    assert decisions.needed(state) == ()


def test_wait_postpones_the_next_request() -> None:
    state, _ = advance(IDLE, decisions.Received(Wait(retry_after_s=30.0)))
    assert step(state, decisions.Tick(), 129.0) == (state, ())
    assert step(state, decisions.Tick(), 130.0)[1] == (decisions.SayReady(),)


def test_tick_while_training_asks_for_nothing() -> None:
    training, _ = advance(IDLE, decisions.Received(an_offer(), frozenset({FROZEN.digest, WEIGHTS.digest})))
    assert step(training, decisions.Tick(), 100.0 + an_offer().deadline_s - 1) == (training, ())


@pytest.mark.parametrize("present", [frozenset({FROZEN.digest, WEIGHTS.digest}), frozenset()])
def test_offer_ends_at_its_deadline(present: frozenset[str]) -> None:
    working, _ = advance(IDLE, decisions.Received(an_offer(), present))
    state, effects = step(working, decisions.Tick(), 100.0 + an_offer().deadline_s)
    assert (state.phase, state.offer) == (Phase.IDLE, None)
    stop, said = effects
    assert stop == decisions.StopTraining()
    assert isinstance(said, decisions.Publish)
    assert isinstance(said.message, Declined)
    assert said.message.failure is Failure.DEADLINE


def test_training_that_was_given_up_is_taken_up_again_when_it_is_offered_again() -> None:
    present = frozenset({FROZEN.digest, WEIGHTS.digest})
    training, _ = advance(IDLE, decisions.Received(an_offer(), present))
    state, (said,) = advance(training, decisions.TrainingFailed(Failure.POLICY, "too hot"))
    assert isinstance(said, decisions.Publish)
    assert isinstance(said.message, Declined)
    assert (said.message.failure, said.message.detail) == (Failure.POLICY, "too hot")
    state, effects = advance(state, decisions.Received(an_offer(), present))
    assert (state.phase, effects) == (Phase.TRAINING, (decisions.Train(an_offer()),))


def test_release_that_was_tried_leaves_a_later_one_alone() -> None:
    first, second = a_release(1), a_release(2)
    installing, _ = advance(IDLE, decisions.ReleaseTrusted(first, frozenset({MODEL.digest})))
    fetching, _ = advance(installing, decisions.ReleaseTrusted(second))
    tried = first.report(Standing.HEALTHY)
    state, _ = advance(fetching, decisions.ReleaseTried(tried))
    assert advance(state, decisions.BlobFetched(MODEL.digest))[1] == (decisions.Install(second),)


def test_release_is_checked_before_anything_of_it_is_fetched() -> None:
    release = Release(envelope=b"signed")
    state, effects = advance(IDLE, decisions.Received(release))
    assert (state, effects) == (replace(IDLE, is_heard=True), (decisions.CheckRelease(release),))


def test_release_arrives_beside_training_without_disturbing_it() -> None:
    training, _ = advance(IDLE, decisions.Received(an_offer(), frozenset({FROZEN.digest, WEIGHTS.digest})))
    state, effects = advance(training, decisions.ReleaseTrusted(a_release()), decisions.BlobFetched(MODEL.digest))
    assert effects == (decisions.Fetch((MODEL,)), decisions.Install(a_release()))
    assert state.phase is Phase.TRAINING
    report = a_release().report(Standing.HEALTHY)
    state, effects = advance(state, decisions.ReleaseTried(report))
    assert effects == (decisions.Publish(report),)
    assert state.release is None


def test_release_whose_model_cannot_be_had_is_reported_unhealthy() -> None:
    state, _ = advance(IDLE, decisions.ReleaseTrusted(a_release()))
    _, effects = advance(state, decisions.BlobFailed(MODEL.digest, "gone"))
    assert effects == (decisions.Publish(a_release().report(Standing.ROLLED_BACK, "gone")),)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ({"manifest": (FROZEN,)}, "the offer's manifest lacks weights"),
        ({"manifest": ()}, "the offer's manifest lacks frozen, weights"),
        ({"submodel": Submodel((), (), ())}, "submodel needs one head count"),
        ({"submodel": Submodel((0,), (-1,), (4,))}, "submodel asks for (-1,) heads a layer; the model has 1..1"),
        ({"submodel": Submodel((2**62,), (1,), (4,))}, "must rise within 0..0"),
        ({"nested": (Submodel((0,), (1,), (5,)),)}, "submodel asks for (5,) FFN neurons"),
    ],
)
def test_offer_of_which_nothing_could_be_trained_is_declined(harm: dict[str, object], why: str) -> None:
    offer = msgspec.structs.replace(an_offer(), **harm)
    state, (effect,) = step(IDLE, decisions.Received(offer, frozenset({"a" * 64, "b" * 64})), 0.0)
    assert state.phase is Phase.IDLE
    assert isinstance(effect, decisions.Publish)
    declined = effect.message
    assert isinstance(declined, Declined)
    assert (declined.task, declined.round, declined.failure) == ("t", 1, Failure.TRAINING)
    assert why in declined.detail


def test_release_that_is_withdrawn_is_neither_fetched_nor_tried_any_more() -> None:
    fetching, _ = advance(IDLE, decisions.ReleaseTrusted(a_release()))
    withdrawn = Order(an_assignment(1, None))
    state, effects = advance(fetching, decisions.ReleaseTrusted(withdrawn))
    assert effects == (decisions.Leave(withdrawn),)
    assert decisions.needed(state) == ()
    assert advance(state, decisions.BlobFetched(MODEL.digest))[1] == ()


def test_release_that_is_withdrawn_leaves_a_later_one_alone() -> None:
    fetching, _ = advance(IDLE, decisions.ReleaseTrusted(a_release(2)))
    state, effects = advance(fetching, decisions.ReleaseTrusted(Order(an_assignment(1, None))))
    assert len(effects) == 1
    assert decisions.needed(state) == (MODEL,)


def test_release_said_again_changes_nothing() -> None:
    state, _ = advance(IDLE, decisions.ReleaseTrusted(a_release()))
    assert advance(state, decisions.ReleaseTrusted(a_release())) == (state, ())
