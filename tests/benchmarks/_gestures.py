"""A made task that asks for capacity: a language of two gestures whose words have to be learnt by heart.

A window is two gestures, one after the other, each a curve of six channels; noise and loudness differ from window to
window. What a pair means is drawn by lot once, so no rule covers two pairs: a model must tell the gestures apart, bring
both together, and hold the whole table. Real motion has no such table: there a quarter of the model is enough.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEPS, CHANNELS = 128, 6
_LENGTH = STEPS // 2
_KNOT_STEPS = 8
_NOISE = 0.5
_LOUDNESS = (0.8, 1.25)


class GestureLanguage:
    """``gestures`` curves and the table of what each ordered pair of them means, one of ``meanings``."""

    def __init__(self, random: np.random.Generator, *, gestures: int, meanings: int) -> None:
        self.meanings = meanings
        self._curves = _curves(random, gestures)
        pairs = gestures**2
        self._table = random.permutation(np.arange(pairs) % meanings).reshape(gestures, gestures)

    def windows(self, random: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Fresh windows, float32 (count, 128, 6), and their meanings, int64 (count,)."""
        first, second = random.integers(0, len(self._curves), (2, count))
        clean = np.concatenate([self._curves[first], self._curves[second]], axis=1)
        loud = clean * random.uniform(*_LOUDNESS, (count, 1, 1))
        noisy = loud + _NOISE * random.normal(size=clean.shape)
        return noisy.astype(np.float32), self._table[first, second].astype(np.int64)


def _curves(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count, 64, 6): random values eight steps apart, joined by straight lines, of variance 1 over all."""
    knots = random.normal(size=(count, _LENGTH // _KNOT_STEPS + 1, CHANNELS))
    places, steps = np.arange(0, _LENGTH + 1, _KNOT_STEPS), np.arange(_LENGTH)
    curves = np.stack(
        [
            np.stack([np.interp(steps, places, knots[one, :, axis]) for axis in range(CHANNELS)], 1)
            for one in range(count)
        ]
    )
    return curves / curves.std()
