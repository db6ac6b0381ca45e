from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.training import adamw
from edge_sdk.training.adamw import AdamW


def reference(
    weights: NDArray[np.float32],
    gradients: list[NDArray[np.float32]],
    steps: int,
    *,
    learning_rate: float,
    weight_decay: float,
    clip_norm: float | None = None,
) -> NDArray[np.float64]:
    """The algorithm as the paper writes it, in double precision."""
    theta, m, v = weights.astype(np.float64), 0.0, 0.0
    for t in range(1, steps + 1):
        g = np.concatenate([part.astype(np.float64) * t for part in gradients])
        if clip_norm is not None:
            g *= min(1.0, clip_norm / (np.linalg.norm(g) + 1e-6))
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        theta = theta - learning_rate * weight_decay * theta
        theta -= learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return theta


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_adamw_of_several_arrays_follows_the_paper(clip_norm: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "_BLOCK", 64)
    rng = np.random.default_rng(7)
    weights = rng.normal(size=300).astype(np.float32)
    gradients = [rng.normal(size=size).astype(np.float32) for size in (1, 64, 65, 170)]
    expected = reference(weights, gradients, 20, learning_rate=1e-2, weight_decay=0.1, clip_norm=clip_norm)
    optimizer = AdamW(300, learning_rate=1e-2, weight_decay=0.1, clip_norm=clip_norm)
    for step in range(1, 21):
        optimizer.step(weights, [part * np.float32(step) for part in gradients])
    np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=2e-6)


def test_adamw_step_only_reads_gradients() -> None:
    gradient = np.full(10, 3.0, dtype=np.float32)
    gradient.flags.writeable = False
    weights = np.zeros(10, dtype=np.float32)
    AdamW(10, learning_rate=0.1, weight_decay=0.0, clip_norm=1.0).step(weights, [gradient])
    np.testing.assert_allclose(weights, -0.1, rtol=1e-5)  # the first step is the learning rate, whatever the gradient
