"""The largest submodel that a budget allows.

A task's candidates and their costs are computed once, as a :class:`Ladder`; a choice is then a bisection, so that ten
thousand devices take milliseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.planning.budget import Budget
from coordinator.planning.nesting import Nesting, nested_widths
from coordinator.planning.space import Space, chain
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.runtimes import COSTS, Runtime
from edge_sdk.elastic.submodel import Submodel, TrainablePart
from edge_sdk.protocol.messages import Recipe


@dataclass(frozen=True, slots=True)
class TaskCosts:
    """What a submodel costs a device in a task; ``nesting`` is what each step trains besides.

    It trains on ``runtime``. What is released is ``quantised`` or not, and runs on onnxruntime.
    """

    model: CostModel
    part: TrainablePart
    recipe: Recipe
    nesting: Nesting
    quantised: bool = True
    runtime: Runtime = Runtime.ONNX

    def training_bytes(self, submodel: Submodel) -> int:
        """Peak resident memory of the training process, with the costliest of what may be nested."""
        return self.model.training_memory_bytes(
            submodel,
            self.part,
            batch_size=self.recipe.batch_size,
            max_tokens=self.recipe.max_tokens,
            nested=self._nested(submodel),
            runtime=COSTS[self.runtime],
        )

    def training_flops(self, submodel: Submodel) -> int:
        """Of a round, for each of the device's examples."""
        return self.model.training_flops(
            submodel,
            self.part,
            samples=self.recipe.epochs,
            max_tokens=self.recipe.max_tokens,
            nested=self._nested(submodel),
        )

    def inference_bytes(self, submodel: Submodel) -> int:
        """Peak resident memory of the process that predicts."""
        return self.model.inference_memory_bytes(submodel, max_tokens=self.recipe.max_tokens, quantised=self.quantised)

    def of(self, submodel: Submodel) -> tuple[int, int, int]:
        """All three."""
        return self.training_bytes(submodel), self.training_flops(submodel), self.inference_bytes(submodel)

    def _nested(self, submodel: Submodel) -> tuple[Submodel, ...]:
        return nested_widths(submodel, self.model.architecture, self.nesting)


@dataclass(frozen=True, slots=True)
class Ladder:
    """Submodels from small to large with what each costs; every tuple is as long as ``submodels`` and rises."""

    submodels: tuple[Submodel, ...]
    training_bytes: tuple[int, ...]
    training_flops: tuple[int, ...]
    inference_bytes: tuple[int, ...]

    @classmethod
    def of(cls, costs: TaskCosts, space: Space, ranking: Sequence[int] | None = None) -> Ladder:
        """The submodels of ``space``; ``ranking`` has the layers by falling salience, by default as they run."""
        architecture = costs.model.architecture
        rungs = chain(space, architecture, ranking or range(architecture.layers), costs.of)
        training, flops, inference = zip(*map(costs.of, rungs), strict=True)
        return cls(tuple(rungs), training, flops, inference)

    def for_training(self, budget: Budget) -> Submodel | None:
        """The largest submodel that ``budget`` allows to train; ``None`` where not even the smallest fits."""
        fitting = bisect_right(self.training_bytes, budget.memory_bytes)
        if budget.flops_per_sample is not None:
            fitting = min(fitting, bisect_right(self.training_flops, budget.flops_per_sample))
        return self.submodels[fitting - 1] if fitting else None

    def for_inference(self, budget: Budget) -> Submodel | None:
        """The largest submodel that ``budget`` allows to run; ``None`` where not even the smallest fits."""
        fitting = bisect_right(self.inference_bytes, budget.memory_bytes)
        return self.submodels[fitting - 1] if fitting else None
