"""Choosing submodels for 10,000 devices by memory and time: milliseconds, and what share of its memory each uses."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

from coordinator.planning.budget import Budget
from coordinator.planning.nesting import Nesting
from coordinator.planning.planner import Ladder, TaskCosts
from coordinator.planning.space import Space
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.protocol.messages import Recipe
from tests.benchmarks._measure import Figure, seconds, show
from tests.support.bert import MINILM, shapes

BAR = 100.0
_DEVICES = 10_000
_REPEATS = 11


def run() -> Figure:
    recipe = Recipe(learning_rate=1e-4, batch_size=16, epochs=1, max_tokens=32)
    costs = TaskCosts(CostModel.of(MINILM, shapes(MINILM)), TrainablePart.NO_EMBEDDINGS, recipe, Nesting())
    made_s = seconds(lambda: Ladder.of(costs, Space(depth=True)))
    ladder, drawn = Ladder.of(costs, Space(depth=True)), random.Random(0)
    least, most = ladder.training_bytes[0], ladder.training_bytes[-1]
    budgets = [Budget(drawn.randint(least, most)) for _ in range(_DEVICES)]
    slow, fast = ladder.training_flops[0], ladder.training_flops[-1]
    timed = [replace(budget, flops_per_sample=drawn.uniform(slow, fast), flops_per_byte=1.0) for budget in budgets]
    chosen_ms = _milliseconds(ladder, timed)
    used = _shares_used(costs, ladder, budgets)
    rows = [
        ("submodels to choose from", f"{len(ladder.submodels)}"),
        ("their costs, once a task", f"{1e3 * made_s:.0f} ms"),
        (f"choices for {_DEVICES:,} devices", f"{chosen_ms:.1f} ms"),
        ("the same by memory alone", f"{_milliseconds(ladder, budgets):.1f} ms"),
        ("budget used, median device", f"{100 * statistics.median(used):.1f} %"),
        ("budget used, worst device", f"{100 * min(used):.1f} %"),
        ("budgets exceeded", f"{sum(share > 1 for share in used)}"),
    ]
    show("planner: MiniLM, memory budgets between the smallest and the largest submodel's", rows)
    more = {"median_budget_used": round(statistics.median(used), 4), "most_budget_used": round(max(used), 4)}
    return Figure("planner", chosen_ms, BAR, f"ms for {_DEVICES} devices", more)


def _milliseconds(ladder: Ladder, budgets: list[Budget]) -> float:
    return 1e3 * statistics.median(seconds(lambda: [*map(ladder.for_training, budgets)]) for _ in range(_REPEATS))


def _shares_used(costs: TaskCosts, ladder: Ladder, budgets: list[Budget]) -> list[float]:
    chosen = ((ladder.for_training(budget), budget) for budget in budgets)
    return [costs.training_bytes(submodel) / budget.memory_bytes for submodel, budget in chosen if submodel]
