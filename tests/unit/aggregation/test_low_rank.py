"""Adapters of mixed ranks and widths against the formulas on dense float64 arrays.

Factors come back as float32, so products are compared to within 1e-5 of their largest entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregation.coverage import UpdateSource, advance
from coordinator.aggregation.low_rank import Folding, merge
from coordinator.aggregation.rule import AdapterMerge, AggregationRule, aggregate
from coordinator.aggregation.server_optimizer import OptimizerKind, ServerOptimizer
from edge_sdk.elastic.slicing import Array, Region, shapes_of
from edge_sdk.errors import ConfigurationError, UnsupportedArchitectureError
from edge_sdk.protocol.tensors import write_tensors

MODULE = "layers.0.q"
A, B, W, HEAD = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight", f"{MODULE}.weight", "classifier.weight"
OUT, IN, RANK = 20, 16, 6
WHOLE_OUT, WHOLE_IN = (range(OUT),), (range(IN),)
Ranges = tuple[range, ...]
Shape = tuple[int, Ranges, Ranges]
"""Rank, outputs and inputs of one update."""


def base_of(seed: int, rank: int = RANK, *, fresh: bool = False) -> dict[str, Array]:
    """Trained adapters, or with ``fresh`` such as PEFT starts with: B is zero."""
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    shapes = {A: (rank, IN), B: (OUT, rank), W: (OUT, IN), HEAD: (3, OUT)}
    base = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return base | ({B: np.zeros((OUT, rank), np.float32)} if fresh else {})


def updates_of(folder: Path, parts: Sequence[Shape], seed: int, scale: float = 0.5) -> list[UpdateSource]:
    """One file of random deltas each, of weights 1, 2, 3 and so on."""
    generator, updates = np.random.default_rng(seed), []
    for index, (rank, outputs, inputs) in enumerate(parts):
        ranks = (range(rank),)
        slices = {A: Region((ranks, inputs)), B: Region((outputs, ranks)), HEAD: Region(((range(3),), WHOLE_OUT))}
        path = folder / str(index)
        with path.open("wb") as file:
            shapes = shapes_of(slices)
            write_tensors(
                file, {n: np.float32(scale) * generator.standard_normal(s, np.float32) for n, s in shapes.items()}
            )
        updates.append(UpdateSource(f"{index:03}", 1.0 + index, slices, path))
    return updates


def device_factors(base: Mapping[str, Array], update: UpdateSource) -> tuple[np.ndarray, np.ndarray]:
    """B and A as the device has them after training, float64, zero where it holds nothing."""
    from safetensors.numpy import load_file

    deltas, made = load_file(update.path), []
    for name in (B, A):
        full, held = base[name].astype(float), np.zeros(base[name].shape)
        change, mask = np.zeros_like(held), np.zeros_like(held)
        update.slices[name].put(change, deltas[name])
        update.slices[name].put(mask, np.ones(deltas[name].shape))
        made.append(np.where(mask > 0, full + change, 0))
    return made[0], made[1]


def product(parameters: Mapping[str, Array]) -> np.ndarray:
    return parameters[B].astype(float) @ parameters[A].astype(float)


def mean_of_products(base: Mapping[str, Array], updates: Sequence[UpdateSource]) -> np.ndarray:
    """FlexLoRA's and FLoRA's: every entry of the full-size products over those who hold it."""
    total, weights = np.zeros((OUT, IN)), np.zeros((OUT, IN))
    for update in updates:
        left, right = device_factors(base, update)
        held = np.zeros((OUT, IN))
        Region((update.slices[B].axes[0], update.slices[A].axes[1])).put(held, np.ones((OUT, IN)))
        total += update.weight * held * (left @ right)
        weights += update.weight * held
    return total / weights


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


HALF, REST = (range(10),), (range(10, OUT),)
ROLLED = (range(5), range(15, OUT))
CASES = {
    "equal ranks": [(2, WHOLE_OUT, WHOLE_IN)] * 3,
    "mixed ranks": [(1, WHOLE_OUT, WHOLE_IN), (2, WHOLE_OUT, WHOLE_IN), (3, WHOLE_OUT, WHOLE_IN)],
    "mixed ranks and heads": [(1, HALF, WHOLE_IN), (2, WHOLE_OUT, WHOLE_IN), (1, ROLLED, WHOLE_IN)],
    "mixed ranks and inputs": [(1, WHOLE_OUT, (range(7),)), (2, WHOLE_OUT, WHOLE_IN), (1, WHOLE_OUT, (range(3, 9),))],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rank", [RANK, 12])
def test_svd_of_fresh_adapters_is_the_mean_of_the_products_where_the_ranks_fit(
    tmp_path: Path, name: str, rank: int
) -> None:
    """FlexLoRA's claim. At rank 6 the stacks are smaller than the product, at rank 12 they are not.

    Outputs that only some hold split a component in two at most, which still fits.
    """
    base = base_of(1, rank, fresh=True)
    updates = updates_of(tmp_path, CASES[name], seed=2)
    expected = mean_of_products(base, updates)
    assert np.linalg.matrix_rank(expected) <= RANK
    assert_close(product(merge(base, updates, floor=0.0)), expected)


def test_svd_of_trained_adapters_of_full_rank_is_the_best_approximation_of_the_mean(tmp_path: Path) -> None:
    base, updates = base_of(3), updates_of(tmp_path, [(RANK, WHOLE_OUT, WHOLE_IN)] * 4, seed=4)
    expected = mean_of_products(base, updates)
    merged = merge(base, updates, floor=0.0)
    assert np.linalg.matrix_rank(expected) > RANK
    assert_close(product(merged), best(expected, RANK))
    for rank in range(1, RANK):
        prefix = merged[B][:, :rank].astype(float) @ merged[A][:rank].astype(float)
        assert_close(prefix, best(expected, rank))


def test_plain_average_of_the_factors_is_not_the_mean_of_the_products(tmp_path: Path) -> None:
    """The control: what the tests above would find if A and B were averaged by themselves."""
    base, updates = base_of(1, fresh=True), updates_of(tmp_path, CASES["mixed ranks"], seed=2)
    expected = mean_of_products(base, updates)
    averaged = aggregate(base, updates, AggregationRule(floor=0.0, adapters=AdapterMerge.MEAN), {}).parameters
    assert np.abs(product(averaged) - expected).max() > 0.1 * np.abs(expected).max()


def test_components_that_no_device_holds_stay(tmp_path: Path) -> None:
    base, updates = base_of(5), updates_of(tmp_path, [(2, WHOLE_OUT, WHOLE_IN), (1, HALF, WHOLE_IN)], seed=6)
    base[A][4:] = base[B][:, 4:] = 0  # room for what is added, so that nothing is truncated
    expected = product(base)
    (left, right), (half_left, half_right) = (device_factors(base, update) for update in updates)
    b, a = base[B].astype(float), base[A].astype(float)
    changes = left @ right - b[:, :2] @ a[:2], half_left @ half_right - np.outer(b[:, 0], a[0])
    expected[:10] += (changes[0][:10] + 2 * changes[1][:10]) / 3
    expected[10:] += changes[0][10:]
    assert_close(product(merge(base, updates, floor=0.0)), best(expected, RANK))


def test_floor_and_rate_scale_the_step_of_the_product(tmp_path: Path) -> None:
    """Weights 1 and 2, and only the second covers the other outputs: at floor 1 its step there is two thirds."""
    base = base_of(1, fresh=True)
    updates = updates_of(tmp_path, [(1, HALF, WHOLE_IN), (2, WHOLE_OUT, WHOLE_IN)], seed=2)
    expected = 0.5 * mean_of_products(base, updates)
    expected[10:] *= 2 / 3
    assert_close(product(merge(base, updates, floor=1.0, rate=0.5)), expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_stack_adds_the_exact_mean_of_the_products_and_starts_adapters_anew(
    tmp_path: Path, name: str, is_transposed: bool
) -> None:
    base = base_of(7, fresh=True)
    if is_transposed:
        base[W] = np.ascontiguousarray(base[W].T)
    updates = updates_of(tmp_path, [(rank + 3, *sides) for rank, *sides in CASES[name]], seed=8)
    merged = merge(base, updates, floor=0.0, folding=Folding(2.0, is_transposed, seed=9))
    added = merged[W].astype(float) - base[W]
    assert_close(added.T if is_transposed else added, 2.0 * mean_of_products(base, updates))
    assert not merged[B].any()
    assert np.abs(merged[A]).max() <= 1 / np.sqrt(IN)
    assert np.linalg.matrix_rank(merged[A]) == RANK


def test_stack_draws_the_same_adapters_from_the_same_seed_only(tmp_path: Path) -> None:
    base, updates = base_of(7), updates_of(tmp_path, CASES["equal ranks"], seed=8)
    drawn = [merge(base, updates, floor=0.0, folding=Folding(2.0, False, seed))[A].tobytes() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("folding", [None, Folding(2.0, is_transposed=False, seed=1)])
@pytest.mark.parametrize("parts", [[], CASES["mixed ranks and heads"]])
def test_untrained_adapters_come_back_bit_for_bit(tmp_path: Path, folding: Folding | None, parts: list[Shape]) -> None:
    base = base_of(10)
    merged = merge(base, updates_of(tmp_path, parts, seed=1, scale=0.0), floor=0.0, folding=folding)
    assert {name: array.tobytes() for name, array in merged.items()} == {n: base[n].tobytes() for n in (A, B)}


def test_order_of_arrival_does_not_change_a_bit(tmp_path: Path) -> None:
    base, updates = base_of(11), updates_of(tmp_path, CASES["mixed ranks and heads"], seed=12)
    first, second = (merge(base, order, floor=0.3) for order in (updates, updates[::-1]))
    assert {name: array.tobytes() for name, array in first.items()} == {n: a.tobytes() for n, a in second.items()}


def test_component_without_a_singular_value_can_still_be_trained(tmp_path: Path) -> None:
    """With both A's row and B's column zero, no gradient would ever reach it again."""
    merged = merge(base_of(1, fresh=True), updates_of(tmp_path, [(1, WHOLE_OUT, WHOLE_IN)], seed=2), floor=0.0)
    np.testing.assert_allclose(np.linalg.norm(merged[A], axis=1), 1, atol=1e-5)


def test_rank_beyond_a_side_of_the_module_keeps_its_shapes(tmp_path: Path) -> None:
    base = base_of(1, rank=IN + 2, fresh=True)
    updates = updates_of(tmp_path, [(IN + 2, WHOLE_OUT, WHOLE_IN)], seed=2)
    merged = merge(base, updates, floor=0.0)
    assert (merged[A].shape, merged[B].shape) == (base[A].shape, base[B].shape)
    assert_close(product(merged), mean_of_products(base, updates))


def test_module_elastic_on_both_sides_is_refused(tmp_path: Path) -> None:
    updates = updates_of(tmp_path, [(2, HALF, (range(7),))], seed=2)
    with pytest.raises(UnsupportedArchitectureError, match=MODULE):
        merge(base_of(1), updates, floor=0.0)


def test_rule_merges_adapters_and_moves_all_else_by_coverage(tmp_path: Path) -> None:
    base, updates = base_of(13), updates_of(tmp_path, CASES["mixed ranks"], seed=14)
    found = aggregate(base, updates, AggregationRule(floor=0.0), {}).parameters
    plain = advance({HEAD: base[HEAD]}, updates, floor=0.0, optimizer=ServerOptimizer(), moments={}).parameters
    merged = merge(base, updates, floor=0.0)
    assert list(found) == list(base)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in (base | plain | merged).items()
    }


def test_rule_stacks_onto_the_base_weight(tmp_path: Path) -> None:
    base, updates = base_of(15, fresh=True), updates_of(tmp_path, CASES["mixed ranks"], seed=16)
    rule = AggregationRule(floor=0.0, adapters=AdapterMerge.STACK)
    found = aggregate(base, updates, rule, {}, Folding(0.5, is_transposed=False, seed=0)).parameters
    assert_close(found[W].astype(float) - base[W], 0.5 * mean_of_products(base, updates))


def test_stack_without_a_base_weight_or_its_scale_is_refused(tmp_path: Path) -> None:
    base, updates = base_of(15), updates_of(tmp_path, CASES["mixed ranks"], seed=16)
    rule = AggregationRule(adapters=AdapterMerge.STACK)
    with pytest.raises(ConfigurationError, match="scale"):
        aggregate(base, updates, rule, {})
    del base[W]
    with pytest.raises(ConfigurationError, match=W):
        aggregate(base, updates, rule, {}, Folding(0.5, is_transposed=False, seed=0))


def test_optimizer_with_moments_refuses_adapters_that_are_refactored(tmp_path: Path) -> None:
    rule = AggregationRule(optimizer=ServerOptimizer(OptimizerKind.FEDADAM))
    with pytest.raises(ConfigurationError, match="fedadam"):
        aggregate(base_of(1), updates_of(tmp_path, CASES["mixed ranks"], seed=2), rule, {})


def test_floor_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="floor"):
        AggregationRule(floor=1.5)
