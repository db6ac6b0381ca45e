"""Aggregation against the plain formula on dense float64 arrays with masks.

The made-up model has every layout: q, k and v in one weight, windows that go around the end, adapters with two elastic
axes, and parameters of zero to four axes.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregation import coverage
from coordinator.aggregation.coverage import UpdateSource
from coordinator.aggregation.tensor_file import TensorFile
from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import Array, Region, Shapes, Slices, shapes_of, slices_of
from edge_sdk.elastic.submodel import Adapters, Architecture, Submodel
from edge_sdk.errors import StorageError
from edge_sdk.protocol.encodings import decode, encode
from edge_sdk.protocol.messages import Encoding, EncodingKind
from edge_sdk.protocol.tensors import write_tensors
from tests.support.plain_mean import aggregate

ARCHITECTURE = Architecture("gpt2", 2, 4, 2, 12, 8, 11, 5, 3, adapters=Adapters(rank=4))
LAYER = {
    "attn.c_attn.weight": (8, 24),
    "attn.c_attn.bias": (24,),
    "attn.c_attn.lora_A.weight": (4, 8),
    "attn.c_attn.lora_B.weight": (24, 4),
    "attn.c_proj.weight": (8, 8),
    "mlp.c_fc.weight": (8, 12),
    "mlp.c_proj.weight": (12, 8),
    "ln_1.weight": (8,),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "temperature": (),
    "class_token": (1, 1, 8),
    "positions": (1, 5, 8),
    "patches": (4, 3, 2, 2),
    **{f"transformer.h.{index}.{name}": shape for index in range(2) for name, shape in LAYER.items()},
}
SEEDS = st.integers(0, 2**32 - 1)
ENCODINGS = st.builds(Encoding, kind=st.sampled_from(EncodingKind), share=st.sampled_from([0.01, 0.3, 1.0]))
Cohort = Sequence[tuple[Submodel, float]]


def normal(seed: int, shapes: dict[str, tuple[int, ...]], scale: float = 1.0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {n: np.asarray(scale * generator.standard_normal(s), np.float32) for n, s in shapes.items()}


BASE = normal(1, SHAPES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks far smaller than a parameter, so that their borders are met."""
    monkeypatch.setattr(coverage, "_BLOCK", 30)


@st.composite
def submodels(draw: st.DrawFn) -> Submodel:
    """Any layers and widths, from the first unit on or from another and around the end."""
    layers = sorted(draw(st.sets(st.integers(0, 1), min_size=1)))
    heads, ffn = ([draw(st.integers(1, most)) for _ in layers] for most in (ARCHITECTURE.heads, ARCHITECTURE.ffn))
    first = draw(st.just((0, 0)) | st.tuples(st.integers(0, 3), st.integers(0, 11)))
    return Submodel(tuple(layers), tuple(heads), tuple(ffn), draw(st.integers(1, 4)), *first)


COHORTS = st.lists(st.tuples(submodels(), st.floats(0.25, 1000)), min_size=1, max_size=6)


def slices(submodel: Submodel) -> Slices:
    return slices_of(submodel, ARCHITECTURE, family_of(ARCHITECTURE.family), SHAPES)


def sources(folder: str, cohort: Cohort, seed: int, scale: float = 1.0) -> list[UpdateSource]:
    """One file of random deltas for each submodel and weight; ``scale`` 0 is a device that has not trained."""
    print(f"seed {seed}")
    updates = []
    for index, (submodel, weight) in enumerate(cohort):
        cut, path = slices(submodel), Path(folder, str(index))
        with path.open("wb") as file:
            write_tensors(file, normal(seed + index, shapes_of(cut), scale))
        updates.append(UpdateSource(f"{index:03}", weight, cut, path))
    return updates


def deltas(update: UpdateSource) -> dict[str, Array]:
    """Read with the safetensors package: another implementation of the format."""
    from safetensors.numpy import load_file

    return load_file(update.path)


def mask(region: Region | None, shape: tuple[int, ...]) -> np.ndarray:
    covered = np.zeros(shape, np.float32)
    if region is not None:
        region.put(covered, np.ones(region.shape, np.float32))
    return covered > 0


def dense_mean(updates: Sequence[UpdateSource], floor: float) -> dict[str, np.ndarray]:
    """The mean delta of every entry, 0 where nobody covers it."""
    total = sum(update.weight for update in updates)
    result = {}
    for name, shape in SHAPES.items():
        numerator, covered = np.zeros(shape), np.zeros(shape)
        for update in updates:
            if name in update.slices:
                part = np.zeros(shape)
                update.slices[name].put(part, deltas(update)[name])
                numerator += update.weight * part
                covered += update.weight * mask(update.slices[name], shape)
        result[name] = numerator / np.where(covered > 0, np.maximum(covered, floor * total), 1)
    return result


def bits(model: dict[str, Array]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.items()}


@settings(max_examples=60)
@given(COHORTS, SEEDS, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1.0, 0.5]))
def test_aggregate_equals_the_formula_on_dense_arrays(cohort: Cohort, seed: int, floor: float, rate: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        result = aggregate(BASE, updates, floor=floor, rate=rate)
        means = dense_mean(updates, floor)
    assert result.keys() == SHAPES.keys()
    for name, mean in means.items():
        assert (result[name].dtype, result[name].shape) == (np.float32, SHAPES[name])
        np.testing.assert_allclose(result[name], BASE[name] + rate * mean, rtol=2e-6, atol=2e-6, err_msg=name)


@settings(max_examples=30)
@given(COHORTS, SEEDS, st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, -0.0]))
def test_untrained_updates_return_the_base_bit_for_bit(cohort: Cohort, seed: int, floor: float, scale: float) -> None:
    base = {name: np.where(np.abs(array) < 0.3, np.float32(-0.0), array) for name, array in BASE.items()}
    with tempfile.TemporaryDirectory() as folder:
        result = aggregate(base, sources(folder, cohort, seed, scale), floor=floor)
    assert bits(result) == bits(base)


@settings(max_examples=30)
@given(COHORTS, SEEDS, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_change_a_bit(cohort: Cohort, seed: int, shuffler: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        shuffled = shuffler.sample(updates, len(updates))
        assert bits(aggregate(BASE, shuffled, floor=0.3)) == bits(aggregate(BASE, updates, floor=0.3))


@settings(max_examples=30)
@given(COHORTS, SEEDS, st.lists(ENCODINGS, min_size=6, max_size=6), st.randoms(use_true_random=False))
def test_encoded_updates_count_as_what_they_say_in_any_order(
    cohort: Cohort, seed: int, encodings: list[Encoding], shuffler: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        encoded, plain = [], []
        for update, encoding in zip(sources(folder, cohort, seed), encodings, strict=False):
            tensors = encode(deltas(update), encoding, seed)
            path, table = update.path.with_suffix(".encoded"), shapes_of(update.slices)
            for target, written in ((path, tensors), (update.path, decode(tensors, table, encoding))):
                with target.open("wb") as file:
                    write_tensors(file, written)
            encoded.append(replace(update, path=path, encoding=encoding))
            plain.append(update)
        shuffled = shuffler.sample(encoded, len(encoded))
        assert bits(aggregate(BASE, shuffled, floor=0.3)) == bits(aggregate(BASE, plain, floor=0.3))


@settings(max_examples=20)
@given(COHORTS, SEEDS)
def test_number_of_threads_and_size_of_blocks_do_not_change_a_bit(cohort: Cohort, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates, results = sources(folder, cohort, seed), []
        for threads, block in ((1, 30), (3, 30), (2, 1000)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(coverage, "_THREADS", threads)
                patch.setattr(coverage, "_BLOCK", block)
                results.append(bits(aggregate(BASE, updates, floor=0.3)))
    assert results[0] == results[1] == results[2]


@settings(max_examples=30)
@given(COHORTS, SEEDS)
def test_entries_that_nobody_covers_do_not_move(cohort: Cohort, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        result = aggregate(BASE, updates, floor=0.0)
    moved, reached = 0, 0
    for name, array in BASE.items():
        covered = np.any([mask(update.slices.get(name), array.shape) for update in updates], axis=0)
        assert (result[name][~covered] == array[~covered]).all()
        moved += int((result[name][covered] != array[covered]).sum())
        reached += int(covered.sum())
    assert moved > 0.9 * reached


@settings(max_examples=20)
@given(SEEDS, st.floats(1, 100), st.floats(1, 100))
def test_floor_damps_what_few_cover_by_their_share_of_the_weight(seed: int, narrow: float, wide: float) -> None:
    cohort = [(Submodel((0,), (1,), (3,), 1), narrow), (Submodel((1,), (4,), (12,), 4), wide)]
    name = "transformer.h.0.mlp.c_fc.weight"
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        result = aggregate(BASE, updates, floor=1.0)
        expected = deltas(updates[0])[name]
    moved = result[name][:, :3] - BASE[name][:, :3]
    np.testing.assert_allclose(moved, expected * narrow / (narrow + wide), rtol=1e-4, atol=1e-6)


def test_window_around_the_end_of_a_fused_weight_moves_the_last_and_the_first_head_of_q_k_and_v() -> None:
    rolled = Submodel((0,), (2,), (1,), 1, first_head=3)
    with tempfile.TemporaryDirectory() as folder:
        result = aggregate(BASE, sources(folder, [(rolled, 1.0)], seed=5), floor=0.0)
    moved = (result["transformer.h.0.attn.c_attn.bias"] != BASE["transformer.h.0.attn.c_attn.bias"]).reshape(3, 4, 2)
    assert moved.all(axis=2).tolist() == [[True, False, False, True]] * 3


def test_aggregate_without_updates_copies_the_base() -> None:
    result = aggregate(BASE, [], floor=0.0)
    assert bits(result) == bits(BASE)
    assert not any(np.shares_memory(result[name], BASE[name]) for name in BASE)


def test_aggregate_does_not_touch_the_base() -> None:
    before = bits(BASE)
    with tempfile.TemporaryDirectory() as folder:
        aggregate(BASE, sources(folder, [(Submodel((0,), (4,), (12,), 4), 1.0)], seed=3), floor=0.0)
    assert bits(BASE) == before


@pytest.mark.parametrize("threads", [1, 3])
def test_file_that_is_cut_short_meanwhile_ends_the_aggregation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    class Shrinking(TensorFile):
        def __init__(self, path: Path, shapes: Shapes, encoding: Encoding) -> None:
            super().__init__(path, shapes, encoding)
            os.truncate(path, path.stat().st_size - 4)

    monkeypatch.setattr(coverage, "_THREADS", threads)
    monkeypatch.setattr(coverage, "TensorFile", Shrinking)
    updates = sources(str(tmp_path), [(Submodel((0, 1), (4, 4), (12, 12), 4), 1.0)] * 2, seed=3)
    with pytest.raises(StorageError, match="cut short"):
        aggregate(BASE, updates, floor=0.0)
