"""What a release consists of: for every class of device the best submodel that it can run, in each chosen precision.

Inference needs a fraction of training's memory, so a device usually runs a larger submodel than it trained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.delivery.choice import Judged, best_of
from coordinator.models.versions import ModelVersion
from coordinator.planning.budget import Budget
from coordinator.planning.planner import Ladder, TaskCosts
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.releases import Export, Precision

if TYPE_CHECKING:
    from coordinator.models.run import Run


def build_exports(
    run: Run,
    version: ModelVersion,
    costs: TaskCosts,
    ladder: Ladder,
    budgets: Collection[Budget],
    precisions: Collection[Precision],
) -> tuple[Export, ...]:
    """Export every submodel that some budget chooses, in every precision, and evaluate it on the task's test examples.

    The largest come first. An export that needs more memory than every budget has is left out.
    """
    chosen = {submodel for budget in {*budgets} if (submodel := _choice(run, version, costs, ladder, budget))}
    max_bytes = max((budget.memory_bytes for budget in budgets), default=0)
    made = [
        export
        for number, submodel in enumerate(sorted(chosen, key=run.parameters, reverse=True), start=1)
        for export in _in_precisions(run, version, costs, submodel, f"m{number}", precisions)
        if export.inference_memory_bytes <= max_bytes
    ]
    return tuple(made)


def _choice(run: Run, version: ModelVersion, costs: TaskCosts, ladder: Ladder, budget: Budget) -> Submodel | None:
    """The best of the widths that are evaluated anyway and of the largest submodel, among those that fit the budget."""
    largest = ladder.for_inference(budget)
    if largest is None:
        return None
    widths = (width for width in run.widths.values() if costs.inference_bytes(width) <= budget.memory_bytes)
    judged = [(submodel, run.judge(version, submodel)) for submodel in {largest, *widths}]
    return best_of([Judged(it, run.parameters(it), found.accuracy, found.samples) for it, found in judged])


def _in_precisions(
    run: Run,
    version: ModelVersion,
    costs: TaskCosts,
    submodel: Submodel,
    name: str,
    precisions: Collection[Precision],
) -> Iterator[Export]:
    for precision in precisions:
        exported = run.export(version, submodel, precision)
        yield Export(
            name=f"{name}-{precision.value}",
            submodel=submodel,
            precision=precision,
            opset=exported.opset,
            onnxruntime=exported.onnxruntime,
            parameters=run.parameters(submodel),
            inference_memory_bytes=replace(costs, quantised=precision is Precision.INT8).inference_bytes(submodel),
            accuracy=exported.evaluation.accuracy,
            samples=exported.evaluation.samples,
            manifest=exported.manifest,
        )
