"""Slicing: what is cut out can be put back, and nested submodels nest."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.elastic.slicing import extract, scatter, shapes_of
from edge_sdk.elastic.submodel import Submodel, full
from tests.support.bert import TINY, shapes, slices, weights

SEEDS = st.integers(0, 2**32 - 1)


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


@settings(max_examples=50, deadline=None)
@given(nested(), SEEDS)
def test_scatter_of_an_untouched_submodel_restores_the_model(pair: Pair, seed: int) -> None:
    print(f"seed {seed}")
    model, cut = weights(TINY, seed), slices(pair[0], TINY)
    before = {name: array.tobytes() for name, array in model.items()}
    scatter(model, cut, extract(model, cut))
    assert {name: array.tobytes() for name, array in model.items()} == before


@settings(max_examples=50, deadline=None)
@given(nested(), SEEDS)
def test_scatter_changes_the_covered_entries_and_no_others(pair: Pair, seed: int) -> None:
    print(f"seed {seed}")
    model, cut = weights(TINY, seed), slices(pair[0], TINY)
    changed = {name: array.copy() for name, array in model.items()}
    scatter(changed, cut, {name: array + 1 for name, array in extract(model, cut).items()})
    covered = sum(array.size for array in extract(model, cut).values())
    assert sum(int((changed[name] != model[name]).sum()) for name in model) == covered
    np.testing.assert_equal(extract(changed, cut), {name: array + 1 for name, array in extract(model, cut).items()})


@settings(max_examples=50, deadline=None)
@given(nested())
def test_slices_of_a_submodel_lie_inside_those_of_a_larger_one(pair: Pair) -> None:
    outer, inner = (slices(submodel, TINY) for submodel in pair)
    assert inner.keys() <= outer.keys()
    for name, axes in inner.items():
        assert all(o.start <= i.start and i.stop <= o.stop for i, o in zip(axes, outer[name], strict=True))


@settings(max_examples=50, deadline=None)
@given(nested(), SEEDS)
def test_cutting_twice_equals_cutting_once(pair: Pair, seed: int) -> None:
    """Prefixes keep their places, so no index list is needed: the inner part of the outer part is the inner part."""
    print(f"seed {seed}")
    outer, inner = (slices(submodel, TINY) for submodel in pair)
    model = weights(TINY, seed)
    np.testing.assert_equal(extract(extract(model, outer), inner), extract(model, inner))


@settings(max_examples=50, deadline=None)
@given(nested(), SEEDS)
def test_extract_copies_contiguously_and_in_the_shapes_foretold(pair: Pair, seed: int) -> None:
    print(f"seed {seed}")
    model, cut = weights(TINY, seed), slices(pair[0], TINY)
    part = extract(model, cut)
    assert {name: array.shape for name, array in part.items()} == shapes_of(cut)
    assert all(array.flags.c_contiguous for array in part.values())
    assert not any(np.shares_memory(array, model[name]) for name, array in part.items())


def test_slices_of_the_full_submodel_are_the_whole_model() -> None:
    assert shapes_of(slices(full(TINY), TINY)) == shapes(TINY)
