"""Chooses which of the models that fit a device it should run: the best, which is not always the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Judged(Generic[_T]):
    """A model with its number of parameters, and its accuracy from 0 to 1 on ``samples`` held-out targets."""

    model: _T
    parameters: int
    accuracy: float
    samples: int
    size_bytes: int = 0


def best_of(judged: Sequence[Judged[_T]]) -> _T | None:
    """The largest model whose accuracy is within one standard error of the best; ``None`` if there are no models.

    The standard error is that of the best accuracy p over its n samples, sqrt(p(1 - p) / n). Of models with equally
    many parameters, the smaller file is chosen: a larger one gains nothing.
    """
    if not judged:
        return None
    best = max(judged, key=lambda one: one.accuracy)
    error = math.sqrt(best.accuracy * (1 - best.accuracy) / best.samples)
    near = [one for one in judged if one.accuracy >= best.accuracy - error]
    return max(near, key=lambda one: (one.parameters, -one.size_bytes)).model
