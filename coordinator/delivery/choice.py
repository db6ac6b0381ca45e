"""Which of the submodels that fit a device it should run: the best, which need not be the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_sdk.elastic.submodel import Submodel


@dataclass(frozen=True, slots=True)
class Judged:
    """A submodel with its parameters counted, and its accuracy in 0..1 on ``samples`` held-out targets."""

    submodel: Submodel
    parameters: int
    accuracy: float
    samples: int


def best_of(judged: Sequence[Judged]) -> Submodel | None:
    """The largest of those that cannot be told from the most accurate; ``None`` where there are none.

    They are told apart by one standard error of the best's accuracy, sqrt(p(1 - p) / n).
    """
    if not judged:
        return None
    best = max(judged, key=lambda one: one.accuracy)
    error = math.sqrt(best.accuracy * (1 - best.accuracy) / best.samples)
    near = [one for one in judged if one.accuracy >= best.accuracy - error]
    return max(near, key=lambda one: one.parameters).submodel
