"""Which of the models that fit a device it should run: the best, which need not be the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Judged(Generic[_T]):
    """A model with its parameters counted, and its accuracy in 0..1 on ``samples`` held-out targets."""

    model: _T
    parameters: int
    accuracy: float
    samples: int
    size_bytes: int = 0


def best_of(judged: Sequence[Judged[_T]]) -> _T | None:
    """The largest of those that cannot be told from the most accurate; ``None`` where there are none.

    They are told apart by one standard error of the best's accuracy, sqrt(p(1 - p) / n). Of two with as many parameters
    it is the smaller file: the other gains nothing.
    """
    if not judged:
        return None
    best = max(judged, key=lambda one: one.accuracy)
    error = math.sqrt(best.accuracy * (1 - best.accuracy) / best.samples)
    near = [one for one in judged if one.accuracy >= best.accuracy - error]
    return max(near, key=lambda one: (one.parameters, -one.size_bytes)).model
