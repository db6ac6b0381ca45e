"""The largest submodel that a budget allows.

A task's candidates and their costs are computed once, as a :class:`Ladder`. A choice is then a bisection, so that
planning for ten thousand devices takes milliseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from coordinator.planning.budget import Budget
from coordinator.planning.nesting import Nesting, nested_widths
from coordinator.planning.space import Space, chain, rolled, spread
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.runtimes import COSTS, FLOAT_BYTES, Runtime
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart
from edge_sdk.protocol.encodings import bytes_per_entry
from edge_sdk.protocol.messages import FP32, Encoding, Recipe


@dataclass(frozen=True, slots=True)
class TaskCosts:
    """The costs of a submodel on a device, for one task.

    ``nesting`` says which narrower submodels each step also trains. Training runs on ``runtime``, and the update is
    sent in ``encoding``. Inference runs on onnxruntime, with a model that is ``quantised`` or not.
    """

    model: CostModel
    part: TrainablePart
    recipe: Recipe
    nesting: Nesting
    encoding: Encoding = FP32
    quantised: bool = True
    runtime: Runtime = Runtime.ONNX

    def training_bytes(self, submodel: Submodel) -> int:
        """Peak resident memory of the training process, in bytes, with the costliest nested submodels."""
        return self.model.training_memory_bytes(
            submodel,
            self.part,
            batch_size=self.recipe.micro_batch_size or self.recipe.batch_size,
            max_tokens=self.recipe.max_tokens,
            nested=self._nested(submodel),
            runtime=COSTS[self.runtime],
            moments=self.recipe.optimizer.moments,
            is_summed=self.recipe.micro_batch_size is not None,
        )

    def training_flops(self, submodel: Submodel) -> int:
        """FLOPs of a round per example of the device."""
        return self.model.training_flops(
            submodel,
            self.part,
            samples=self.recipe.epochs,
            max_tokens=self.recipe.max_tokens,
            nested=self._nested(submodel),
        )

    def wire_bytes(self, submodel: Submodel) -> int:
        """Bytes transferred per round: the trained parameters down, in float32, and their update up.

        Frozen parameters are transferred once and kept by the device.
        """
        weights_bytes = self.model.update_bytes(submodel, self.part)
        return round(weights_bytes * (1 + bytes_per_entry(self.encoding) / FLOAT_BYTES))

    def inference_bytes(self, submodel: Submodel) -> int:
        """Peak resident memory of the inference process, in bytes."""
        return self.model.inference_memory_bytes(submodel, max_tokens=self.recipe.max_tokens, quantised=self.quantised)

    def of(self, submodel: Submodel) -> tuple[int, int, int]:
        """Training bytes, training FLOPs and inference bytes."""
        return self.training_bytes(submodel), self.training_flops(submodel), self.inference_bytes(submodel)

    def _nested(self, submodel: Submodel) -> tuple[Submodel, ...]:
        return nested_widths(submodel, self.model.architecture, self.nesting)


@dataclass(frozen=True, slots=True)
class Ladder:
    """The candidate submodels in increasing size, with their costs.

    Every tuple is as long as ``submodels`` and increasing; ``wire_bytes`` may have equal neighbours.
    """

    submodels: tuple[Submodel, ...]
    training_bytes: tuple[int, ...]
    training_flops: tuple[int, ...]
    inference_bytes: tuple[int, ...]
    wire_bytes: tuple[int, ...]

    @classmethod
    def of(cls, costs: TaskCosts, space: Space, ranking: Sequence[int] | None = None) -> Ladder:
        """The ladder of ``space``. ``ranking``: the layers by falling salience; default: the model's order."""
        architecture = costs.model.architecture
        rungs = chain(space, architecture, ranking or range(architecture.layers), costs.of)
        training, flops, inference = zip(*map(costs.of, rungs), strict=True)
        return cls(tuple(rungs), training, flops, inference, tuple(map(costs.wire_bytes, rungs)))

    def for_training(self, budget: Budget) -> Submodel | None:
        """The largest submodel whose training fits the budget; ``None`` if not even the smallest fits."""
        fitting = bisect_right(self.training_bytes, budget.memory_bytes)
        if budget.flops_per_sample is not None:
            fitting = bisect_right(
                range(fitting), budget.flops_per_sample, key=lambda rung: self._flops_and_wire(rung, budget)
            )
        return self.submodels[fitting - 1] if fitting else None

    def steps_in_time(self, budget: Budget) -> int | None:
        """Steps of the smallest submodel that there is time for, at least one; ``None`` if there is time for all."""
        if budget.flops_per_sample is None or budget.steps is None:
            return None
        left = budget.flops_per_sample - budget.flops_per_byte * self.wire_bytes[0]
        steps = int(max(0.0, budget.steps * left / self.training_flops[0]))
        return max(1, steps) if steps < budget.steps else None

    def _flops_and_wire(self, rung: int, budget: Budget) -> float:
        """FLOPs of a round per sample, plus what could be computed during its transfers."""
        return self.training_flops[rung] + budget.flops_per_byte * self.wire_bytes[rung]

    def for_inference(self, budget: Budget) -> Submodel | None:
        """The largest submodel whose inference fits the budget; ``None`` if not even the smallest fits."""
        fitting = bisect_right(self.inference_bytes, budget.memory_bytes)
        return self.submodels[fitting - 1] if fitting else None


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What a device is asked to train.

    A batch is processed in parts of ``micro_batch_size`` examples, or whole if that is ``None``. ``memory_bytes`` is
    the predicted peak. ``is_timed`` says that the deadline, not memory, limits the submodel. If there is not even time
    for all steps of the smallest submodel, ``max_steps`` limits the steps.
    """

    submodel: Submodel
    micro_batch_size: int | None
    memory_bytes: int
    is_timed: bool = False
    max_steps: int | None = None


class Planner:
    """Chooses submodels for the devices of one task. The runtime in ``costs`` is ignored.

    There is a ladder for each runtime and micro-batch size, computed when first needed.
    """

    def __init__(self, costs: TaskCosts, space: Space, ranking: Sequence[int]) -> None:
        self._costs, self._space, self._ranking = costs, space, ranking
        self._made: dict[tuple[Runtime, int | None], tuple[TaskCosts, Ladder]] = {}

    def for_training(self, budget: Budget, runtime: Runtime) -> TrainingPlan | None:
        """The largest submodel whose training fits the budget; ``None`` if not even the smallest fits into memory.

        Only if the smallest submodel does not fit with whole batches, they are split, and halved until it does. If
        there is too little time for the smallest submodel, it is trained for fewer steps.
        """
        for size in _micro_batch_sizes(self._costs.recipe):
            costs, ladder = self.of(runtime, size)
            largest = ladder.for_training(Budget(budget.memory_bytes))
            if largest is not None:
                submodel = ladder.for_training(budget) or ladder.submodels[0]
                steps = ladder.steps_in_time(budget)
                is_timed = submodel != largest or steps is not None
                return TrainingPlan(submodel, size, costs.training_bytes(submodel), is_timed, steps)
        return None

    def of(self, runtime: Runtime, micro_batch_size: int | None = None) -> tuple[TaskCosts, Ladder]:
        """The costs on ``runtime`` with this micro-batch size, and their ladder."""
        key = runtime, micro_batch_size
        if key not in self._made:
            recipe = msgspec.structs.replace(self._costs.recipe, micro_batch_size=micro_batch_size)
            costs = replace(self._costs, recipe=recipe, runtime=runtime)
            self._made[key] = costs, Ladder.of(costs, self._space, self._ranking)
        return self._made[key]


def _micro_batch_sizes(recipe: Recipe) -> Iterator[int | None]:
    """The recipe's own micro-batch size if it splits a batch, then ever smaller ones, halved, down to one example."""
    size = min(recipe.micro_batch_size or recipe.batch_size, recipe.batch_size)
    yield size if size < recipe.batch_size else None
    while size > 1:
        size = (size + 1) // 2
        yield size


def placed(
    cohort: Mapping[str, TrainingPlan], architecture: Architecture, space: Space, number: int
) -> dict[str, TrainingPlan]:
    """Plans of the same cost, with the wide layers and the windows placed so that the round covers the model evenly."""
    made = dict[str, TrainingPlan]()
    covered = [0.0] * architecture.layers
    for device, plan in cohort.items():
        even = spread(plan.submodel, architecture, covered)
        for layer, heads in zip(even.layers, even.heads, strict=True):
            covered[layer] += heads
        made[device] = replace(plan, submodel=rolled(even, architecture, number) if space.is_rolling else even)
    return made
