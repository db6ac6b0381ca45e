"""Optimizers that update one flat array in place, in blocks that are small enough for the processor's cache."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from edge_sdk.protocol.messages import Optimizer, Recipe
from edge_sdk.training.flat import Flat

_BLOCK = 1 << 16  # entries; six arrays of 256 KiB
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
MOMENTUM = 0.9
_NORM_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_


class FlatOptimizer(ABC):
    """Updates ``size`` float32 weights by their gradients, which are clipped by norm first if the recipe says so.

    ``state`` holds the arrays of that size that it keeps from step to step, by name, and ``steps`` the number of steps
    taken; restoring both resumes it exactly. A step allocates nothing.
    """

    def __init__(self, size: int, recipe: Recipe, *remembered: str) -> None:
        self._recipe = recipe
        arrays = np.full((len(remembered), size), 0, dtype=np.float32)  # resident now, not at the first step
        self.state: Mapping[str, Flat] = dict(zip(remembered, arrays, strict=True))
        self.steps = 0
        self._scratch = np.empty((2, _BLOCK), dtype=np.float32)
        self._joined = np.empty(_BLOCK, dtype=np.float32)

    def step(self, weights: Flat, gradients: Sequence[Flat]) -> None:
        """Update ``weights`` (size,) in place by ``gradients``, which lie end to end and are only read."""
        self.steps += 1
        clip_norm = self._recipe.clip_norm
        scale = 1.0 if clip_norm is None else min(1.0, clip_norm / (_norm(gradients) + _NORM_EPSILON))
        start = 0
        for part in self._parts(gradients):
            block = slice(start, start + part.size)
            self._update(weights[block], part, scale, block)
            start += part.size

    def _parts(self, gradients: Sequence[Flat]) -> Iterator[Flat]:
        """The same values in the same order, in parts of at most a block; small gradients are joined."""
        waiting, size = list[Flat](), 0
        for gradient in gradients:
            for offset in range(0, gradient.size, _BLOCK):
                part = gradient[offset : offset + _BLOCK]
                if size + part.size > _BLOCK:
                    yield self._join(waiting, size)
                    waiting, size = [], 0
                waiting.append(part)
                size += part.size
        if waiting:
            yield self._join(waiting, size)

    def _join(self, parts: Sequence[Flat], size: int) -> Flat:
        return parts[0] if len(parts) == 1 else np.concatenate(parts, out=self._joined[:size])

    @abstractmethod
    def _update(self, weights: Flat, gradient: Flat, scale: float, block: slice) -> None:
        """Update one block of weights by ``gradient`` times ``scale``; ``block`` is where its state lies."""


class AdamW(FlatOptimizer):
    """Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2, with the defaults of ``torch.optim.AdamW``."""

    def __init__(self, size: int, recipe: Recipe) -> None:
        super().__init__(size, recipe, "moment1", "moment2")

    def _update(self, weights: Flat, gradient: Flat, scale: float, block: slice) -> None:
        moment1, moment2 = self.state["moment1"][block], self.state["moment2"][block]
        ratio, denominator = self._scratch[:, : weights.size]
        moment1 *= _BETA1
        moment1 += np.multiply(gradient, scale * (1 - _BETA1), out=ratio)
        moment2 *= _BETA2
        np.multiply(gradient, scale * math.sqrt(1 - _BETA2), out=ratio)  # a square before could overflow
        moment2 += np.multiply(ratio, ratio, out=ratio)
        bias = math.sqrt(1 - _BETA2**self.steps)  # of the root, taken from it and from epsilon at once
        np.sqrt(moment2, out=denominator)
        denominator += _EPSILON * bias
        np.divide(moment1, denominator, out=ratio)
        ratio *= self._recipe.learning_rate * bias / (1 - _BETA1**self.steps)
        weights *= 1 - self._recipe.learning_rate * self._recipe.weight_decay
        weights -= ratio


class Sgd(FlatOptimizer):
    """w ← w - learning rate · (gradient + weight decay · w), as ``torch.optim.SGD``; it keeps no state."""

    def _update(self, weights: Flat, gradient: Flat, scale: float, block: slice) -> None:  # noqa: ARG002
        change = np.multiply(gradient, scale * self._recipe.learning_rate, out=self._scratch[0, : weights.size])
        weights *= 1 - self._recipe.learning_rate * self._recipe.weight_decay
        weights -= change


class Momentum(FlatOptimizer):
    """Polyak's heavy ball with a factor of 0.9, as ``torch.optim.SGD(momentum=0.9)``; it keeps one array."""

    def __init__(self, size: int, recipe: Recipe) -> None:
        super().__init__(size, recipe, "velocity")

    def _update(self, weights: Flat, gradient: Flat, scale: float, block: slice) -> None:
        velocity, scratch = self.state["velocity"][block], self._scratch[0, : weights.size]
        velocity *= MOMENTUM
        velocity += np.multiply(gradient, scale, out=scratch)
        velocity += np.multiply(weights, self._recipe.weight_decay, out=scratch)
        weights -= np.multiply(velocity, self._recipe.learning_rate, out=scratch)


_KINDS: Mapping[Optimizer, Callable[[int, Recipe], FlatOptimizer]] = {
    Optimizer.ADAMW: AdamW,
    Optimizer.SGD: Sgd,
    Optimizer.MOMENTUM: Momentum,
}


def optimizer_of(recipe: Recipe, size: int) -> FlatOptimizer:
    """The optimizer that ``recipe`` names, for ``size`` weights."""
    return _KINDS[recipe.optimizer](size, recipe)


def _norm(arrays: Sequence[Flat]) -> float:
    return math.sqrt(math.fsum(float(np.dot(array, array)) for array in arrays))
