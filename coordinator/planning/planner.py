"""The largest submodel that a budget allows.

A task's candidates and their costs are computed once, as a :class:`Ladder`; a choice is then a bisection, so that ten
thousand devices take milliseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.planning.budget import Budget
from edge_sdk.elastic.cost import inference_memory_bytes, training_flops, training_memory_bytes
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart, uniform
from edge_sdk.protocol.messages import Recipe


def uniform_candidates(architecture: Architecture) -> tuple[Submodel, ...]:
    """All layers, with 1 to all heads in each."""
    return tuple(uniform(architecture, heads) for heads in range(1, architecture.heads + 1))


def nested_within(submodel: Submodel, nested: Submodel | None) -> Submodel | None:
    """``nested`` where ``submodel`` is wider and can train it too, else ``None``."""
    return nested if nested is not None and nested.heads < submodel.heads else None


@dataclass(frozen=True, slots=True)
class Ladder:
    """Submodels from small to large with what each costs; every tuple is as long as ``submodels`` and rises."""

    submodels: tuple[Submodel, ...]
    training_bytes: tuple[int, ...]
    training_flops: tuple[int, ...]
    inference_bytes: tuple[int, ...]

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        part: TrainablePart,
        recipe: Recipe,
        *,
        quantised: bool,
        nested: Submodel | None = None,
        candidates: Sequence[Submodel] | None = None,
    ) -> Ladder:
        """The costs of ``candidates``, which rise in every cost, in a task; ``quantised`` is what is released.

        Every candidate wider than ``nested`` also trains that prefix of itself.
        """
        rungs = tuple(candidates or uniform_candidates(architecture))
        training = [
            training_memory_bytes(
                rung,
                architecture,
                part,
                batch_size=recipe.batch_size,
                max_tokens=recipe.max_tokens,
                nested=nested_within(rung, nested),
            )
            for rung in rungs
        ]
        flops = [training_flops(s, architecture, part, samples=recipe.epochs, tokens=recipe.max_tokens) for s in rungs]
        inference = [
            inference_memory_bytes(s, architecture, max_tokens=recipe.max_tokens, quantised=quantised) for s in rungs
        ]
        return cls(rungs, tuple(training), tuple(flops), tuple(inference))

    def training_bytes_of(self, submodel: Submodel) -> int:
        """The predicted peak of training one of the candidates."""
        return self.training_bytes[self.submodels.index(submodel)]

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
