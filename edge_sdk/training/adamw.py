"""AdamW on one flat array, in place, block by block so that a block of all its arrays stays in the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edge_sdk.training.flat import Flat

_BLOCK = 1 << 16  # entries; six arrays of 256 KiB
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_NORM_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_


class AdamW:
    """Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2, with the defaults of ``torch.optim.AdamW``.

    Holds two moments of ``size`` float32 and two blocks of scratch; a step allocates nothing.
    """

    def __init__(self, size: int, *, learning_rate: float, weight_decay: float, clip_norm: float | None = None) -> None:
        self._learning_rate, self._weight_decay, self._clip_norm = learning_rate, weight_decay, clip_norm
        self._moment1, self._moment2 = np.full((2, size), 0, dtype=np.float32)  # resident now, not at the first step
        self._scratch = np.empty((2, _BLOCK), dtype=np.float32)
        self._step = 0

    def step(self, weights: Flat, gradients: Sequence[Flat]) -> None:
        """Update ``weights`` (size,) in place by ``gradients``, which lie end to end and are only read."""
        self._step += 1
        scale = 1.0 if self._clip_norm is None else min(1.0, self._clip_norm / (_norm(gradients) + _NORM_EPSILON))
        start = 0
        for gradient in gradients:
            for offset in range(0, gradient.size, _BLOCK):
                part = gradient[offset : offset + _BLOCK]
                block = slice(start + offset, start + offset + part.size)
                self._update(weights[block], part, scale, self._moment1[block], self._moment2[block])
            start += gradient.size

    def _update(self, weights: Flat, gradient: Flat, scale: float, moment1: Flat, moment2: Flat) -> None:
        ratio, denominator = self._scratch[:, : weights.size]
        moment1 *= _BETA1
        moment1 += np.multiply(gradient, scale * (1 - _BETA1), out=ratio)
        moment2 *= _BETA2
        np.multiply(gradient, gradient, out=ratio)
        ratio *= scale**2 * (1 - _BETA2)
        moment2 += ratio
        np.sqrt(moment2, out=denominator)
        denominator /= math.sqrt(1 - _BETA2**self._step)
        denominator += _EPSILON
        np.divide(moment1, denominator, out=ratio)
        ratio *= self._learning_rate / (1 - _BETA1**self._step)
        weights *= 1 - self._learning_rate * self._weight_decay
        weights -= ratio


def _norm(arrays: Sequence[Flat]) -> float:
    return math.sqrt(math.fsum(float(np.dot(array, array)) for array in arrays))
