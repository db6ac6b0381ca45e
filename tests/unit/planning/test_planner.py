"""Budgets, and the largest submodel that each allows."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.planning.budget import (
    DEADLINE_SHARE,
    TRAINING_EFFICIENCY,
    Budget,
    Pace,
    estimated_pace,
    late_pace,
    measured_pace,
    shrunk,
    training_budget,
)
from coordinator.planning.nesting import Nesting
from coordinator.planning.planner import Ladder, Planner, TaskCosts, TrainingPlan
from coordinator.planning.space import Space
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import Submodel, TrainablePart, full, uniform
from edge_sdk.protocol.messages import FP32, Encoding, EncodingKind, Optimizer, Recipe, Snapshot, TrainingReport
from tests.support.bert import MINILM, shapes

PART = TrainablePart.NO_EMBEDDINGS
RECIPE = Recipe(learning_rate=1e-4, batch_size=16, epochs=2, max_tokens=32)
MODEL = CostModel.of(MINILM, shapes(MINILM))
COSTS = TaskCosts(MODEL, PART, RECIPE, Nesting(shares=()))
SPACES = {
    "width": Space(),
    "width and depth": Space(depth=True),
    "depth": Space(width=False, depth=True),
}
LADDERS = {name: Ladder.of(COSTS, space) for name, space in SPACES.items()}
NESTED = Ladder.of(replace(COSTS, nesting=Nesting(is_random=True)), Space(depth=True))
LADDER = LADDERS["width"]
SNAPSHOT = Snapshot(
    memory_total_bytes=2**32,
    memory_available_bytes=2**31,
    training_memory_bytes=400_000_000,
    inference_memory_bytes=200_000_000,
    threads=2,
)


@pytest.mark.parametrize("ladder", [*LADDERS.values(), NESTED], ids=[*LADDERS, "nested"])
def test_costs_rise_with_every_rung(ladder: Ladder) -> None:
    for costs in (ladder.training_bytes, ladder.training_flops, ladder.inference_bytes):
        assert list(costs) == sorted(set(costs))
        assert len(costs) == len(ladder.submodels)


@pytest.mark.parametrize("ladder", [*LADDERS.values(), NESTED], ids=[*LADDERS, "nested"])
def test_every_rung_is_chosen_from_its_own_cost_on(ladder: Ladder) -> None:
    smaller = None
    for submodel, training_bytes in zip(ladder.submodels, ladder.training_bytes, strict=True):
        assert ladder.for_training(Budget(training_bytes)) == submodel
        assert ladder.for_training(Budget(training_bytes - 1)) == smaller
        smaller = submodel


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(LADDERS)),
    st.integers(0, 2 * LADDER.training_bytes[-1]),
    st.none() | st.floats(0, 2 * LADDER.training_flops[-1]),
)
def test_no_budget_is_ever_exceeded(name: str, memory_bytes: int, flops: float | None) -> None:
    budget, ladder = Budget(memory_bytes, flops), LADDERS[name]
    if (chosen := ladder.for_training(budget)) is None:
        assert ladder.training_bytes[0] > memory_bytes or (flops is not None and ladder.training_flops[0] > flops)
    else:
        assert COSTS.training_bytes(chosen) <= memory_bytes
        assert flops is None or COSTS.training_flops(chosen) <= flops
    if (runs := ladder.for_inference(budget)) is not None:
        assert COSTS.inference_bytes(runs) <= memory_bytes


@pytest.mark.parametrize("name", sorted(LADDERS))
def test_median_device_uses_most_of_its_memory(name: str) -> None:
    ladder = LADDERS[name]
    drawn, (least, most) = random.Random(0), (ladder.training_bytes[0], ladder.training_bytes[-1])
    budgets = [drawn.randint(least, most) for _ in range(1000)]
    used = [COSTS.training_bytes(chosen) / b for b in budgets if (chosen := ladder.for_training(Budget(b)))]
    assert len(used) == len(budgets)
    assert statistics.median(used) >= 0.85
    assert min(used) >= (0.75 if name == "depth" else 0.85)


def test_median_device_uses_most_of_its_time() -> None:
    drawn, (least, most) = random.Random(0), (LADDER.training_flops[0], LADDER.training_flops[-1])
    budgets = [drawn.uniform(least, most) for _ in range(1000)]
    used = [COSTS.training_flops(LADDER.for_training(Budget(2**50, flops))) / flops for flops in budgets]
    assert min(used) >= 0.85


def test_unlimited_budget_gets_the_full_model() -> None:
    for ladder in LADDERS.values():
        assert ladder.for_training(Budget(2**50)) == ladder.for_inference(Budget(2**50)) == full(MINILM)


def test_where_one_head_a_layer_is_too_much_layers_are_left_out() -> None:
    budget = Budget(LADDER.training_bytes[0] - 1)
    assert LADDER.for_training(budget) is None
    deep = Ladder.of(COSTS, Space(depth=True), ranking=[4, 0, 2, 5, 3, 1])
    assert deep.for_training(budget).layers == (0, 2, 3, 4, 5)


def test_time_limits_where_memory_would_allow_more() -> None:
    flops = COSTS.training_flops(uniform(MINILM, 5))
    assert LADDER.for_training(Budget(2**50, flops)) == uniform(MINILM, 5)
    assert LADDER.for_training(Budget(2**50, 1.0)) is None
    assert LADDER.for_training(Budget(COSTS.training_bytes(uniform(MINILM, 3)), flops)) == uniform(MINILM, 3)


def test_inference_in_the_same_memory_is_larger_than_training() -> None:
    budget = Budget(COSTS.training_bytes(uniform(MINILM, 4)))
    assert LADDER.for_inference(budget).heads[0] > 4


def test_nested_widths_and_another_runtime_cost_more() -> None:
    nested = replace(COSTS, nesting=Nesting(shares=(0.25,)))
    assert nested.training_bytes(full(MINILM)) > COSTS.training_bytes(full(MINILM))
    assert nested.training_flops(full(MINILM)) > COSTS.training_flops(full(MINILM))
    assert replace(COSTS, runtime=Runtime.TORCH).training_bytes(full(MINILM)) > COSTS.training_bytes(full(MINILM))


SHORT = msgspec.structs.replace(RECIPE, max_steps=6)
FAST = msgspec.structs.replace(SNAPSHOT, gflops=40.0, link_bytes_per_s=1e6)
REPORT = TrainingReport(
    samples=100,
    steps=14,
    loss_first=1.0,
    loss_last=0.5,
    seconds=7.0,
    peak_memory_bytes=1,
    downloaded_bytes=0,
    uploaded_bytes=0,
)


def test_training_budget_without_pace_or_deadline_ignores_time() -> None:
    pace = estimated_pace(FAST, SHORT)
    assert pace is not None
    for untimed in (training_budget(FAST, pace=pace), training_budget(FAST, deadline_s=60.0)):
        assert (untimed.flops_per_sample, untimed.flops_per_byte, untimed.steps) == (None, 0, None)
    timed = training_budget(FAST, deadline_s=60.0, pace=pace)
    assert timed.flops_per_sample == pytest.approx(0.8 * 60 * pace.flops)
    assert (timed.flops_per_byte, timed.steps) == (pytest.approx(pace.flops / 1e6), 6)


def test_speed_that_was_not_measured_and_samples_that_are_not_known_give_no_estimate() -> None:
    assert estimated_pace(SNAPSHOT, SHORT) is None
    assert estimated_pace(FAST, RECIPE) is None


def test_estimated_pace_counts_what_a_round_passes() -> None:
    pace = estimated_pace(FAST, SHORT)  # 96 examples in six steps are two epochs of 48
    assert pace == Pace(pytest.approx(TRAINING_EFFICIENCY * 40e9 / 48), 6)


def test_measured_pace_is_what_the_round_took() -> None:
    assert measured_pace(REPORT, RECIPE, 21e9) == Pace(pytest.approx(3e9), 14)
    fewer = msgspec.structs.replace(REPORT, steps=7)
    assert measured_pace(fewer, RECIPE, 21e9) == Pace(pytest.approx(1.5e9), 14)
    assert measured_pace(msgspec.structs.replace(REPORT, seconds=0.0), RECIPE, 21e9) is None


def test_device_that_was_late_is_asked_for_half() -> None:
    first = late_pace(None, RECIPE, 60e9, 60.0)
    assert first == Pace(0.5e9, None)
    assert late_pace(Pace(4e9, 14), RECIPE, 60e9, 60.0) == Pace(2e9, 14)


@settings(max_examples=200)
@given(
    st.floats(1e6, 1e12),
    st.floats(10, 1e4),
    st.none() | st.floats(1e3, 1e9),
    st.integers(LADDER.training_bytes[0], 2 * LADDER.training_bytes[-1]),
    st.integers(1, 1000),
)
def test_plan_ends_in_time_and_is_the_largest_that_does(
    flops: float, deadline_s: float, link: float | None, memory_bytes: int, steps: int
) -> None:
    """Computing and the wire take at most the planned share of the round, unless even a single step takes longer."""
    snapshot = msgspec.structs.replace(SNAPSHOT, training_memory_bytes=memory_bytes * 2, link_bytes_per_s=link)
    budget = training_budget(snapshot, deadline_s=deadline_s, pace=Pace(flops, steps))
    plan = PLANNER.for_training(budget, Runtime.ONNX)
    untimed = PLANNER.for_training(training_budget(snapshot), Runtime.ONNX)
    assert plan is not None
    assert untimed is not None

    def seconds(submodel: Submodel) -> float:
        wire_s = COSTS.wire_bytes(submodel) / link if link else 0.0
        return COSTS.training_flops(submodel) / flops * ((plan.max_steps or steps) / steps) + wire_s

    assert plan.memory_bytes <= budget.memory_bytes
    if plan.max_steps is None or plan.max_steps > 1:
        assert seconds(plan.submodel) <= DEADLINE_SHARE * deadline_s * (1 + 1e-9)
    if plan.max_steps is not None:
        assert plan.submodel == LADDER.submodels[0]
        assert plan.max_steps <= steps
    assert plan.is_timed == (plan.submodel != untimed.submodel or plan.max_steps is not None)
    if plan.is_timed and plan.max_steps is None:
        larger = LADDER.submodels[LADDER.submodels.index(plan.submodel) + 1]
        assert seconds(larger) > DEADLINE_SHARE * deadline_s * (1 - 1e-9)


def test_slower_link_never_gets_a_larger_submodel() -> None:
    pace, sizes = Pace(5e8, 14), []
    for link in (1e5, 5e5, 1e6, 1.5e6, 2.5e6, None):
        snapshot = msgspec.structs.replace(SNAPSHOT, training_memory_bytes=2**40, link_bytes_per_s=link)
        plan = PLANNER.for_training(training_budget(snapshot, deadline_s=60.0, pace=pace), Runtime.ONNX)
        assert plan is not None
        sizes.append(MODEL.parameter_count(plan.submodel) if plan.max_steps is None else 0)
    assert sizes == sorted(sizes)
    assert len({*sizes}) > 2


def test_shorter_updates_leave_time_for_a_larger_submodel() -> None:
    snapshot = msgspec.structs.replace(SNAPSHOT, training_memory_bytes=2**40, link_bytes_per_s=1e6)
    budget, sizes = training_budget(snapshot, deadline_s=60.0, pace=Pace(5e8, 14)), []
    for encoding in (FP32, Encoding(EncodingKind.INT8)):
        plan = Planner(replace(COSTS, encoding=encoding), Space(), range(6)).for_training(budget, Runtime.ONNX)
        assert plan is not None
        assert plan.max_steps is None
        sizes.append(COSTS.model.parameter_count(plan.submodel))
    assert sizes[0] < sizes[1]


def test_every_report_of_too_little_memory_shrinks_the_budget() -> None:
    factor, budgets = 1.0, []
    for _ in range(4):
        budgets.append(training_budget(SNAPSHOT, memory_factor=factor).memory_bytes)
        factor = shrunk(factor)
    assert budgets == [380_000_000, 304_000_000, 243_200_000, 194_560_000]  # with 5 % kept free


PLANNER = Planner(COSTS, Space(), range(6))
LEAST = LADDER.training_bytes[0]


@pytest.mark.parametrize("runtime", Runtime)
def test_plan_passes_whole_batches_where_they_fit(runtime: Runtime) -> None:
    costs, ladder = PLANNER.of(runtime)
    for submodel, needed in zip(ladder.submodels, ladder.training_bytes, strict=True):
        plan = PLANNER.for_training(Budget(needed), runtime)
        assert plan == TrainingPlan(submodel, None, costs.training_bytes(submodel))


def test_plan_passes_parts_of_a_batch_only_where_nothing_else_fits() -> None:
    plan = PLANNER.for_training(Budget(LEAST - 1), Runtime.ONNX)
    assert plan is not None
    assert plan.micro_batch_size == 8
    assert plan.memory_bytes < LEAST
    smallest = PLANNER.of(Runtime.ONNX, 1)[1].training_bytes[0]
    assert PLANNER.for_training(Budget(smallest), Runtime.ONNX) == TrainingPlan(LADDER.submodels[0], 1, smallest)
    assert PLANNER.for_training(Budget(smallest - 1), Runtime.ONNX) is None


def test_plan_never_passes_more_at_a_time_than_the_recipe() -> None:
    recipe = msgspec.structs.replace(RECIPE, micro_batch_size=3)
    planner = Planner(replace(COSTS, recipe=recipe), Space(), range(6))
    sizes = {
        plan.micro_batch_size
        for budget in range(LEAST // 2, 2 * LEAST, 1 << 18)
        if (plan := planner.for_training(Budget(budget), Runtime.ONNX)) is not None
    }
    assert sizes == {3, 2, 1}


@pytest.mark.parametrize("size", [16, 17, 4096])
def test_plan_of_parts_that_are_no_smaller_than_a_batch_is_that_of_whole_batches(size: int) -> None:
    planner = Planner(replace(COSTS, recipe=msgspec.structs.replace(RECIPE, micro_batch_size=size)), Space(), range(6))
    for budget in range(LEAST // 2, 2 * LEAST, 1 << 22):
        expected = PLANNER.for_training(Budget(budget), Runtime.ONNX)
        assert planner.for_training(Budget(budget), Runtime.ONNX) == expected


@pytest.mark.parametrize(("optimizer", "copies"), [(Optimizer.SGD, 2), (Optimizer.MOMENTUM, 1)])
def test_optimizer_that_remembers_less_costs_less(optimizer: Optimizer, copies: int) -> None:
    lean = replace(COSTS, recipe=msgspec.structs.replace(RECIPE, optimizer=optimizer))
    whole = full(MODEL.architecture)
    saved = COSTS.training_bytes(whole) - lean.training_bytes(whole)
    assert saved == pytest.approx(4 * copies * MODEL.trainable_count(whole, PART), abs=1)


PLANNER = Planner(COSTS, SPACES["width"], range(MINILM.layers))


@settings(max_examples=200)
@given(
    gflops=st.none() | st.floats(0, 1e9),
    link_bytes_per_s=st.none() | st.floats(0, allow_infinity=True),
    memory_bytes=st.integers(0, 2**53),
    seconds=st.floats(0, 1e9),
    samples=st.integers(1, 2**53),
    steps=st.integers(1, 2**53),
)
@example(gflops=1e9, link_bytes_per_s=5e-324, memory_bytes=2**53, seconds=5e-324, samples=1, steps=2**53)
def test_whatever_figures_a_device_may_send_there_is_a_plan_or_none(
    gflops: float | None, link_bytes_per_s: float | None, memory_bytes: int, seconds: float, samples: int, steps: int
) -> None:
    recipe = msgspec.structs.replace(RECIPE, max_steps=10)
    said = msgspec.structs.replace(
        SNAPSHOT, gflops=gflops, link_bytes_per_s=link_bytes_per_s, training_memory_bytes=memory_bytes
    )
    told = msgspec.structs.replace(REPORT, seconds=seconds, samples=samples, steps=steps)
    for pace in (estimated_pace(said, recipe), measured_pace(told, recipe, 1e12)):
        budget = training_budget(said, deadline_s=60.0, pace=pace)
        plan = PLANNER.for_training(budget, Runtime.ONNX)
        assert plan is None or plan.memory_bytes <= memory_bytes
