from __future__ import annotations

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.protocol.messages import Optimizer, Recipe
from edge_sdk.training import optimizers
from edge_sdk.training.optimizers import optimizer_of

RECIPE = Recipe(learning_rate=1e-2, batch_size=8, epochs=1, max_tokens=16, weight_decay=0.1)
SIZES = (1, 2, 64, 65, 20, 43, 1, 170)  # blocks of 64: joined, alone, cut, joined to a full one, and the next begun
STEPS = 20


def reference(
    weights: NDArray[np.float32], gradients: list[NDArray[np.float64]], recipe: Recipe
) -> NDArray[np.float64]:
    """The algorithms as their papers write them, in double precision."""
    theta, m, v = weights.astype(np.float64), 0.0, 0.0
    rate, decay = recipe.learning_rate, recipe.weight_decay
    for t in range(1, STEPS + 1):
        g = np.concatenate(gradients) * t
        if recipe.clip_norm is not None:
            g *= min(1.0, recipe.clip_norm / (np.linalg.norm(g) + 1e-6))
        if recipe.optimizer is Optimizer.ADAMW:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            theta = theta * (1 - rate * decay) - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        else:
            factor = 0.9 if recipe.optimizer is Optimizer.MOMENTUM else 0.0
            m = factor * m + g + decay * theta
            theta = theta - rate * m
    return theta


@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
@pytest.mark.parametrize("kind", Optimizer)
def test_optimizer_of_several_arrays_follows_the_paper(
    kind: Optimizer, clip_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "_BLOCK", 64)
    rng = np.random.default_rng(7)
    weights = rng.normal(size=sum(SIZES)).astype(np.float32)
    gradients = [rng.normal(size=size).astype(np.float32) for size in SIZES]
    recipe = msgspec.structs.replace(RECIPE, optimizer=kind, clip_norm=clip_norm)
    expected = reference(weights, [part.astype(np.float64) for part in gradients], recipe)
    optimizer = optimizer_of(recipe, weights.size)
    for step in range(1, STEPS + 1):
        optimizer.step(weights, [part * np.float32(step) for part in gradients])
    np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", Optimizer)
def test_optimizer_step_only_reads_gradients(kind: Optimizer) -> None:
    gradient = np.full(10, 3.0, dtype=np.float32)
    gradient.flags.writeable = False
    weights = np.zeros(10, dtype=np.float32)
    recipe = msgspec.structs.replace(RECIPE, optimizer=kind, learning_rate=0.1, weight_decay=0.0, clip_norm=10**0.5)
    optimizer_of(recipe, 10).step(weights, [gradient])
    np.testing.assert_allclose(weights, -0.1, rtol=1e-5)  # clipped to ones; AdamW's first step is always the rate


@pytest.mark.parametrize("kind", Optimizer)
def test_gradient_whose_square_overflows_is_clipped_to_nothing(kind: Optimizer) -> None:
    """Its norm is infinite in single precision: torch's clip_grad_norm_ makes it 0, too."""
    weights = np.ones(10, dtype=np.float32)
    recipe = msgspec.structs.replace(RECIPE, optimizer=kind, clip_norm=1.0)
    with np.errstate(over="ignore"):
        optimizer_of(recipe, 10).step(weights, [np.full(10, 1e20, dtype=np.float32)])
    np.testing.assert_allclose(weights, 1 - recipe.learning_rate * recipe.weight_decay, rtol=1e-6)


@pytest.mark.parametrize(("kind", "copies"), [(Optimizer.ADAMW, 2), (Optimizer.SGD, 0), (Optimizer.MOMENTUM, 1)])
def test_optimizer_remembers_no_more_than_it_needs(kind: Optimizer, copies: int) -> None:
    state = optimizer_of(msgspec.structs.replace(RECIPE, optimizer=kind), 10).state
    assert [values.shape for values in state.values()] == [(10,)] * copies
