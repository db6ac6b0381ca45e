"""Slicing: what is cut out can be put back, nested submodels nest, and windows roll over every unit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import Array, Slices, extract, full_shapes, overlaps, scatter, shapes_of, slices_of
from edge_sdk.elastic.submodel import Adapters, Architecture, Submodel, full
from tests.support.bert import TINY, shapes, slices, weights

SEEDS = st.integers(0, 2**32 - 1)
GPT2 = Architecture("gpt2", 2, 3, 2, 10, 6, 11, 5, 2, adapters=Adapters(rank=4))
GPT2_SHAPES = {
    f"transformer.h.{layer}.{name}": shape
    for layer in range(GPT2.layers)
    for name, shape in {
        "attn.c_attn.weight": (6, 18),
        "attn.c_attn.bias": (18,),
        "attn.c_attn.lora_A.weight": (4, 6),
        "attn.c_attn.lora_B.weight": (18, 4),
        "attn.c_proj.weight": (6, 6),
        "mlp.c_fc.weight": (6, 10),
        "mlp.c_proj.weight": (10, 6),
        "ln_1.weight": (6,),
    }.items()
}

Pair = tuple[Submodel, Submodel]


@st.composite
def nested(draw: st.DrawFn) -> Pair:
    """A submodel and one inside it."""
    layers = sorted(draw(st.sets(st.integers(0, TINY.layers - 1), min_size=1)))
    heads = [draw(st.integers(1, TINY.heads)) for _ in layers]
    ffn = [draw(st.integers(1, TINY.ffn)) for _ in layers]
    kept = sorted(draw(st.sets(st.sampled_from(range(len(layers))), min_size=1)))
    inner = [(layers[i], draw(st.integers(1, heads[i])), draw(st.integers(1, ffn[i]))) for i in kept]
    return Submodel(tuple(layers), tuple(heads), tuple(ffn)), Submodel(*map(tuple, zip(*inner, strict=True)))


@st.composite
def windows(draw: st.DrawFn) -> Submodel:
    """A submodel of ``GPT2`` that may start anywhere and go around the end."""
    heads, ffn = ([draw(st.integers(1, most)) for _ in range(2)] for most in (GPT2.heads, GPT2.ffn))
    first = draw(st.integers(0, GPT2.heads - 1)), draw(st.integers(0, GPT2.ffn - 1))
    return Submodel((0, 1), tuple(heads), tuple(ffn), draw(st.integers(1, 4)), *first)


def gpt2_slices(submodel: Submodel) -> Slices:
    return slices_of(submodel, GPT2, family_of("gpt2"), GPT2_SHAPES)


def gpt2_weights(seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in GPT2_SHAPES.items()}


def check_scatter(model: dict[str, Array], cut: Slices) -> None:
    """An untouched part changes nothing; a changed one changes the entries that it covers and no others."""
    part = extract(model, cut)
    same = {name: array.copy() for name, array in model.items()}
    scatter(same, cut, part)
    np.testing.assert_equal(same, model)

    changed = {name: array.copy() for name, array in model.items()}
    scatter(changed, cut, {name: array + 1 for name, array in part.items()})
    assert sum(int((changed[name] != model[name]).sum()) for name in model) == sum(
        array.size for array in part.values()
    )
    np.testing.assert_equal(extract(changed, cut), {name: array + 1 for name, array in part.items()})


@settings(max_examples=50)
@given(nested(), SEEDS)
def test_scatter_restores_and_changes_only_what_it_covers(pair: Pair, seed: int) -> None:
    print(f"seed {seed}")
    check_scatter(weights(TINY, seed), slices(pair[0], TINY))


@settings(max_examples=50)
@given(windows(), SEEDS)
def test_scatter_of_fused_weights_and_windows_restores(submodel: Submodel, seed: int) -> None:
    print(f"seed {seed}")
    check_scatter(gpt2_weights(seed), gpt2_slices(submodel))


@settings(max_examples=50)
@given(windows(), SEEDS)
def test_fused_weights_keep_the_same_heads_of_q_k_and_v(submodel: Submodel, seed: int) -> None:
    print(f"seed {seed}")
    model, name = gpt2_weights(seed), "transformer.h.1.attn.c_attn.weight"
    kept = sorted((submodel.first_head + step) % GPT2.heads for step in range(submodel.heads[1]))
    by_head = model[name].reshape(6, 3, GPT2.heads, GPT2.head_size)

    np.testing.assert_equal(
        extract(model, gpt2_slices(submodel))[name], by_head[:, :, kept].reshape(6, -1), err_msg=f"heads {kept}"
    )


@pytest.mark.parametrize("width", range(1, GPT2.heads + 1))
def test_windows_that_start_at_every_head_cover_all_heads_alike(width: int) -> None:
    name, counts = "transformer.h.0.attn.c_proj.weight", np.zeros((6, 6))
    for first in range(GPT2.heads):
        region = gpt2_slices(Submodel((0,), (width,), (1,), 1, first))[name]
        covered = np.zeros_like(counts)
        region.put(covered, np.ones(region.shape))
        counts += covered
    assert (counts == width).all()


@settings(max_examples=50)
@given(nested())
def test_slices_of_a_submodel_lie_inside_those_of_a_larger_one(pair: Pair) -> None:
    outer, inner = (slices(submodel, TINY) for submodel in pair)
    assert inner.keys() <= outer.keys()
    for name, region in inner.items():
        for inside, outside in zip(region.axes, outer[name].axes, strict=True):
            assert set().union(*inside) <= set().union(*outside)


@settings(max_examples=50)
@given(nested(), SEEDS)
def test_cutting_twice_equals_cutting_once(pair: Pair, seed: int) -> None:
    """Prefixes keep their places, so no index list is needed: the inner part of the outer part is the inner part."""
    print(f"seed {seed}")
    outer, inner = (slices(submodel, TINY) for submodel in pair)
    model = weights(TINY, seed)
    np.testing.assert_equal(extract(extract(model, outer), inner), extract(model, inner))


@settings(max_examples=50)
@given(nested(), SEEDS)
def test_extract_copies_contiguously_and_in_the_shapes_foretold(pair: Pair, seed: int) -> None:
    print(f"seed {seed}")
    model, cut = weights(TINY, seed), slices(pair[0], TINY)
    part = extract(model, cut)
    assert {name: array.shape for name, array in part.items()} == shapes_of(cut)
    assert all(array.flags.c_contiguous for array in part.values())
    assert not any(np.shares_memory(array, model[name]) for name, array in part.items())


@settings(max_examples=20)
@given(windows(), SEEDS)
def test_extract_into_given_arrays_fills_and_returns_them(submodel: Submodel, seed: int) -> None:
    print(f"seed {seed}")
    model, cut = gpt2_weights(seed), gpt2_slices(submodel)
    fresh = extract(model, cut)
    used = {name: np.full_like(array, np.nan) for name, array in fresh.items()}
    again = extract(model, cut, used)
    np.testing.assert_equal(again, fresh)
    assert all(again[name] is used[name] for name in fresh)


@settings(max_examples=50)
@given(windows(), windows())
def test_overlaps_of_two_windows_are_the_entries_that_both_hold(one: Submodel, other: Submodel) -> None:
    first, second = gpt2_slices(one), gpt2_slices(other)
    places = {name: np.arange(np.prod(shape)).reshape(shape) for name, shape in GPT2_SHAPES.items()}
    theirs, ours = extract(places, first), extract(places, second)
    for name in GPT2_SHAPES:
        shared = [(theirs[name][there], ours[name][here]) for there, here in overlaps(first[name], second[name])]
        for there, here in shared:
            np.testing.assert_array_equal(there, here)
        found = [place for there, _ in shared for place in there.reshape(-1).tolist()]
        assert sorted(found) == np.intersect1d(theirs[name], ours[name]).tolist()


@settings(max_examples=50)
@given(windows(), nested())
def test_shapes_of_the_full_model_follow_from_those_of_any_part(window: Submodel, pair: Pair) -> None:
    assert full_shapes(shapes_of(gpt2_slices(window)), GPT2, family_of("gpt2")) == GPT2_SHAPES
    part = shapes_of(slices(pair[0], TINY))
    assert full_shapes(part, TINY, family_of("bert")) == {name: shapes(TINY)[name] for name in part}


def test_slices_of_the_full_submodel_are_the_whole_model() -> None:
    assert shapes_of(slices(full(TINY), TINY)) == shapes(TINY)
    assert shapes_of(gpt2_slices(full(GPT2))) == GPT2_SHAPES
