"""Budgets, and the largest submodel that each allows."""

import time
from dataclasses import replace

import pytest

from coordinator.planning.budget import Budget, inference_budget, shrunk, training_budget
from coordinator.planning.planner import Ladder, uniform_candidates
from edge_sdk.elastic.cost import inference_memory_bytes, training_flops, training_memory_bytes
from edge_sdk.elastic.submodel import TrainablePart, full, uniform
from edge_sdk.protocol.messages import Recipe, Snapshot
from tests.support.bert import MINILM

PART = TrainablePart.NO_EMBEDDINGS
RECIPE = Recipe(learning_rate=1e-4, batch_size=16, epochs=2, max_tokens=32)
LADDER = Ladder.of(MINILM, PART, RECIPE, quantised=True)
SNAPSHOT = Snapshot(
    memory_total_bytes=2**32,
    memory_available_bytes=2**31,
    training_memory_bytes=400_000_000,
    inference_memory_bytes=200_000_000,
    threads=2,
)


def training_bytes(heads: int) -> int:
    return training_memory_bytes(uniform(MINILM, heads), MINILM, PART, batch_size=16, max_tokens=32)


def test_every_rung_is_chosen_from_its_own_cost_on() -> None:
    for heads in range(1, MINILM.heads + 1):
        assert LADDER.for_training(Budget(training_bytes(heads))) == uniform(MINILM, heads)
        smaller = uniform(MINILM, heads - 1) if heads > 1 else None
        assert LADDER.for_training(Budget(training_bytes(heads) - 1)) == smaller


def test_unlimited_budget_gets_the_full_model() -> None:
    assert LADDER.for_training(Budget(2**50)) == full(MINILM)
    assert LADDER.for_inference(Budget(2**50)) == full(MINILM)


def test_time_limits_where_memory_would_allow_more() -> None:
    flops = training_flops(uniform(MINILM, 5), MINILM, PART, samples=RECIPE.epochs, tokens=32)
    assert LADDER.for_training(Budget(2**50, flops)) == uniform(MINILM, 5)
    assert LADDER.for_training(Budget(2**50, 1.0)) is None
    assert LADDER.for_training(Budget(training_bytes(3), flops)) == uniform(MINILM, 3)


def test_inference_in_the_same_memory_is_larger_than_training() -> None:
    budget = Budget(training_bytes(4))
    chosen = LADDER.for_inference(budget)
    assert chosen.heads[0] > 4
    assert inference_memory_bytes(chosen, MINILM, max_tokens=32, quantised=True) <= budget.memory_bytes


def test_candidates_can_be_another_space() -> None:
    depths = [replace(full(MINILM), layers=(0, 5), heads=(12, 12), ffn=(1536, 1536)), full(MINILM)]
    ladder = Ladder.of(MINILM, PART, RECIPE, quantised=False, candidates=depths)
    assert ladder.for_training(Budget(ladder.training_bytes[1] - 1)) == depths[0]


def test_costs_rise_with_every_rung() -> None:
    for costs in (LADDER.training_bytes, LADDER.training_flops, LADDER.inference_bytes):
        assert list(costs) == sorted(set(costs))
    assert len(uniform_candidates(MINILM)) == len(LADDER.submodels) == MINILM.heads


def test_ten_thousand_choices_take_milliseconds() -> None:
    budgets = [Budget(10_000_000 + 50_000 * index) for index in range(10_000)]
    start = time.process_time()
    chosen = {LADDER.for_training(budget) for budget in budgets}
    assert time.process_time() - start < 0.5  # measured 0.01; the rest is for a loaded machine
    assert chosen == {None, *LADDER.submodels}


def test_training_budget_without_speed_deadline_or_samples_ignores_time() -> None:
    timed = {"deadline_s": 60.0, "samples": 100}
    assert training_budget(SNAPSHOT, **timed).flops_per_sample is None
    fast = Snapshot(
        memory_total_bytes=1,
        memory_available_bytes=1,
        training_memory_bytes=1,
        inference_memory_bytes=1,
        threads=1,
        gflops=2.5,
    )
    assert training_budget(fast).flops_per_sample is None
    assert training_budget(fast, **timed).flops_per_sample == pytest.approx(2.5e9 * 60 / 100)


def test_every_report_of_too_little_memory_shrinks_the_budget() -> None:
    factor, budgets = 1.0, []
    for _ in range(4):
        budgets.append(training_budget(SNAPSHOT, memory_factor=factor).memory_bytes)
        factor = shrunk(factor)
    assert budgets == [380_000_000, 304_000_000, 243_200_000, 194_560_000]  # with 5 % kept free
    assert inference_budget(SNAPSHOT, memory_factor=0.5).memory_bytes == 100_000_000
