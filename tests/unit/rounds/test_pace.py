"""What a round that is over says about the speed of its devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.planning.budget import Pace
from coordinator.planning.nesting import Nesting
from coordinator.planning.planner import TaskCosts
from coordinator.rounds.pace import paces_of_round
from coordinator.store.database import Store
from coordinator.store.records import OfferRecord, RoundRecord, UpdateRecord
from coordinator.store.states import Outcome, Phase
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.submodel import TrainablePart, uniform
from edge_sdk.protocol.messages import Failure, Recipe, TrainingReport, Verdict
from tests.support.bert import MINILM, shapes

RECIPE = Recipe(learning_rate=1e-4, batch_size=10, epochs=2, max_tokens=32)
COSTS = TaskCosts(CostModel.of(MINILM, shapes(MINILM)), TrainablePart.NO_EMBEDDINGS, RECIPE, Nesting())
HALF = uniform(MINILM, 6)
FLOPS = COSTS.training_flops(HALF)
ROUND = RoundRecord("news", 1, "b" * 64, Phase.CLOSED, quorum=1, opened_s=100.0, deadline_s=160.0)
REPORT = TrainingReport(
    samples=30,
    steps=6,
    loss_first=1.0,
    loss_last=0.5,
    seconds=20.0,
    peak_memory_bytes=1,
    downloaded_bytes=0,
    uploaded_bytes=0,
)


def paces(before: dict[str, Pace], known: RoundRecord = ROUND) -> dict[str, Pace]:
    """Of a round with a device for every way in which it can end for one."""
    store = Store("sqlite://")
    with store.transaction() as tx:
        tx.tasks.add("news", b"", 0.0)
        tx.rounds.add(ROUND)
        for device in ("done", "late", "told", "gone", "resting"):
            tx.devices.hello(device, "board", 1, 0.0)
            tx.offers.add(OfferRecord("news", 1, device, HALF, 1, offered_s=100.0))
        tx.offers.updated("news", 1, "done", 130.0, 1)
        tx.updates.add(
            UpdateRecord("u" * 64, "news", 1, "done", "d" * 64, 1, 30.0, REPORT, Verdict.ACCEPTED, "", 130.0)
        )
        tx.offers.failed("news", 1, "told", 160.0, failure=Failure.DEADLINE)
        tx.offers.failed("news", 1, "gone", 130.0, detail="offline")
        tx.offers.failed("news", 1, "resting", 130.0, outcome=Outcome.PAUSED, failure=Failure.POLICY)
        found = paces_of_round(tx, known, COSTS, before)
    store.close()
    return found


def test_update_tells_the_speed_and_a_missed_deadline_that_it_was_too_slow() -> None:
    late = Pace(pytest.approx(FLOPS / 60 / 2), None)
    assert paces({}) == {"done": Pace(pytest.approx(FLOPS / 20), 6), "late": late, "told": late}


def test_device_has_shown_nothing_where_the_round_was_stopped_before_its_deadline() -> None:
    assert paces({}, replace(ROUND, closed_s=159.9)).keys() == {"done", "late", "told"}
    assert paces({}, replace(ROUND, closed_s=131.0)).keys() == {"done", "told"}


def test_device_that_is_late_is_taken_for_half_as_fast_as_before() -> None:
    found = paces({"late": Pace(8e9, 12), "gone": Pace(8e9, 12)})
    assert found["late"] == Pace(4e9, 12)
    assert "gone" not in found
