"""Aggregation against the plain formula on dense float64 arrays with masks."""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregation import coverage
from coordinator.aggregation.coverage import UpdateSource, aggregate
from edge_sdk.elastic.slicing import Array, shapes_of
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.tensors import write_tensors
from tests.support.bert import TINY, shapes, slices, weights

SEEDS = st.integers(0, 2**32 - 1)
Cohort = Sequence[tuple[Submodel, float]]
BASE = weights(TINY, seed=1)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks far smaller than a parameter, so that their borders are met."""
    monkeypatch.setattr(coverage, "_BLOCK", 20)


def submodels() -> st.SearchStrategy[Submodel]:
    widths = st.tuples(st.integers(1, TINY.heads), st.integers(1, TINY.ffn))
    layers = st.dictionaries(st.integers(0, TINY.layers - 1), widths, min_size=1)
    return layers.map(
        lambda kept: Submodel(
            tuple(sorted(kept)), tuple(kept[i][0] for i in sorted(kept)), tuple(kept[i][1] for i in sorted(kept))
        )
    )


COHORTS = st.lists(st.tuples(submodels(), st.floats(0.25, 1000)), min_size=1, max_size=6)


def sources(folder: str, cohort: Cohort, seed: int, scale: float = 1.0) -> list[UpdateSource]:
    """One file of random deltas for each submodel and weight; ``scale`` 0 is a device that has not trained."""
    print(f"seed {seed}")
    generator, updates = np.random.default_rng(seed), []
    for index, (submodel, weight) in enumerate(cohort):
        cut, path = slices(submodel, TINY), Path(folder, str(index))
        with path.open("wb") as file:
            write_tensors(
                file,
                {n: np.float32(scale) * generator.standard_normal(s, np.float32) for n, s in shapes_of(cut).items()},
            )
        updates.append(UpdateSource(f"{index:03}", weight, cut, path))
    return updates


def deltas(update: UpdateSource) -> dict[str, Array]:
    """Read with the safetensors package: another implementation of the format."""
    from safetensors.numpy import load_file

    return load_file(update.path)


def dense_reference(updates: Sequence[UpdateSource], floor: float, rate: float) -> dict[str, np.ndarray]:
    total = sum(update.weight for update in updates)
    result = {}
    for name, shape in shapes(TINY).items():
        numerator, covered = np.zeros(shape), np.zeros(shape)
        for update in updates:
            if name in update.slices:
                numerator[update.slices[name]] += update.weight * deltas(update)[name].astype(np.float64)
                covered[update.slices[name]] += update.weight
        divisor = np.where(covered > 0, np.maximum(covered, floor * total), 1)
        result[name] = BASE[name] + rate * numerator / divisor
    return result


def bits(model: dict[str, Array]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.items()}


@settings(max_examples=60, deadline=None)
@given(COHORTS, SEEDS, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1.0, 0.5]))
def test_aggregate_equals_the_formula_on_dense_arrays(cohort: Cohort, seed: int, floor: float, rate: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        result = aggregate(BASE, updates, floor=floor, rate=rate)
        expected = dense_reference(updates, floor, rate)
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        assert result[name].dtype == np.float32
        np.testing.assert_allclose(result[name], values, rtol=2e-6, atol=2e-6, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(COHORTS, SEEDS, st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, -0.0]))
def test_untrained_updates_return_the_base_bit_for_bit(cohort: Cohort, seed: int, floor: float, scale: float) -> None:
    base = {name: np.where(np.abs(array) < 0.3, np.float32(-0.0), array) for name, array in BASE.items()}
    with tempfile.TemporaryDirectory() as folder:
        result = aggregate(base, sources(folder, cohort, seed, scale), floor=floor)
    assert bits(result) == bits(base)


@settings(max_examples=30, deadline=None)
@given(COHORTS, SEEDS, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_change_a_bit(cohort: Cohort, seed: int, shuffler: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        shuffled = shuffler.sample(updates, len(updates))
        assert bits(aggregate(BASE, shuffled, floor=0.3)) == bits(aggregate(BASE, updates, floor=0.3))


@settings(max_examples=30, deadline=None)
@given(COHORTS, SEEDS)
def test_entries_that_nobody_covers_do_not_move(cohort: Cohort, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        result = aggregate(BASE, updates, floor=0.0)
    for name, array in BASE.items():
        covered = np.zeros(array.shape, bool)
        for update in updates:
            covered[update.slices.get(name, (slice(0, 0),))] = True
        assert (result[name][~covered] == array[~covered]).all()
        assert (result[name][covered] != array[covered]).mean() > 0.9 if covered.any() else True


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(1, 100), st.floats(1, 100))
def test_floor_damps_what_few_cover_by_their_share_of_the_weight(seed: int, narrow: float, wide: float) -> None:
    cohort = [(Submodel((0,), (1,), (3,)), narrow), (Submodel((1,), (4,), (12,)), wide)]
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        result = aggregate(BASE, updates, floor=1.0)
        expected = deltas(updates[0])
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    moved = result[name][:3] - BASE[name][:3]
    np.testing.assert_allclose(moved, expected[name] * narrow / (narrow + wide), rtol=1e-4, atol=1e-6)


def test_aggregate_without_updates_copies_the_base() -> None:
    result = aggregate(BASE, [], floor=0.0)
    assert bits(result) == bits(BASE)
    assert not any(np.shares_memory(result[name], BASE[name]) for name in BASE)


def test_aggregate_does_not_touch_the_base() -> None:
    before = bits(BASE)
    with tempfile.TemporaryDirectory() as folder:
        aggregate(BASE, sources(folder, [(Submodel((0,), (4,), (12,)), 1.0)], seed=3), floor=0.0)
    assert bits(BASE) == before
