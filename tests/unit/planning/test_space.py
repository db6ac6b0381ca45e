"""Chains of submodels, windows that roll, and which layers are wide."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.planning.space import Space, chain, milestones, rolled, spread
from edge_sdk.elastic.submodel import Adapters, Architecture, Submodel, full, uniform

BERT = Architecture("bert", 4, 6, 8, 100, 48, 40, 66, 3)
GROUPED = Architecture("llama", 3, 2, 8, 96, 48, 40, 66, 0, group_size=4, adapters=Adapters(rank=8))
T5 = Architecture("t5", 5, 4, 8, 64, 32, 40, 512, 0, encoder_layers=3)
ARCHITECTURES = st.sampled_from([BERT, GROUPED, T5])
SPACES = st.builds(Space, width=st.booleans(), depth=st.booleans(), rank=st.booleans())
SEEDS = st.integers(0, 2**32 - 1)


def units(submodel: Submodel) -> tuple[int, int]:
    """A cost that is all width, and one with a part that is always there."""
    entries = sum(20 * heads + ffn for heads, ffn in zip(submodel.heads, submodel.ffn, strict=True))
    return entries + submodel.adapter_rank, 3000 + entries


def ranking_of(architecture: Architecture, seed: int) -> list[int]:
    return random.Random(seed).sample(range(architecture.layers), architecture.layers)


def contains(outer: Submodel, inner: Submodel) -> bool:
    widths = {layer: pair for layer, *pair in zip(outer.layers, outer.heads, outer.ffn, strict=True)}
    return inner.adapter_rank <= outer.adapter_rank and all(
        layer in widths and heads <= widths[layer][0] and ffn <= widths[layer][1]
        for layer, heads, ffn in zip(inner.layers, inner.heads, inner.ffn, strict=True)
    )


@settings(max_examples=60)
@given(SPACES, ARCHITECTURES, SEEDS)
def test_chain_rises_from_step_to_step_up_to_the_whole_model(
    space: Space, architecture: Architecture, seed: int
) -> None:
    print(f"seed {seed}")
    found = chain(space, architecture, ranking_of(architecture, seed), units)
    for submodel in found:
        submodel.check(architecture)
    for inner, outer in pairwise(found):
        assert contains(outer, inner)
        assert all(a < b for a, b in zip(units(inner), units(outer), strict=True))
    assert found[-1] == full(architecture)
    assert set(milestones(space, architecture, ranking_of(architecture, seed))) <= set(found)


def test_chain_is_fine_wherever_layers_can_be_widened_one_by_one() -> None:
    wide = replace(BERT, layers=12, heads=2, ffn=1000)
    found = chain(Space(), wide, range(12), units)
    assert len(found) > len(milestones(Space(), wide, range(12))) == 2
    for lower, upper in pairwise(found):
        assert units(lower)[0] >= 0.9 * units(upper)[0]


def test_chain_is_as_coarse_as_fineness_allows() -> None:
    """Nothing in between where each milestone is within a tenth of the next already."""
    assert chain(Space(), BERT, range(4), lambda s: (10_000 + sum(s.heads), 1)) == [
        uniform(BERT, heads) for heads in range(1, 7)
    ]


def test_depth_keeps_the_best_layers_in_the_order_in_which_they_run() -> None:
    fewer = milestones(Space(depth=True), BERT, [2, 0, 3, 1])[:4]
    assert [submodel.layers for submodel in fewer] == [(2,), (0, 2), (0, 2, 3), (0, 1, 2, 3)]
    assert {submodel.heads[0] for submodel in fewer} == {1}
    whole = milestones(Space(width=False, depth=True), BERT, [2, 0, 3, 1])
    assert [submodel.heads[0] for submodel in whole] == [6] * 4


def test_depth_leaves_both_stacks_of_an_encoder_decoder_a_layer() -> None:
    fewer = milestones(Space(depth=True), T5, [4, 2, 1, 0, 3])
    assert [submodel.layers for submodel in fewer[:3]] == [(2, 4), (1, 2, 4), (0, 1, 2, 4)]


def test_rank_follows_the_width_unless_it_is_fixed() -> None:
    assert [s.adapter_rank for s in milestones(Space(), GROUPED, range(3))] == [4, 8]
    assert [s.adapter_rank for s in milestones(Space(rank=False), GROUPED, range(3))] == [8, 8]


def test_space_without_any_dimension_is_the_whole_model() -> None:
    assert chain(Space(width=False), BERT, range(4), units) == [full(BERT)]


@pytest.mark.parametrize("heads", range(1, 7))
def test_windows_come_to_cover_every_unit(heads: int) -> None:
    windows = [rolled(uniform(BERT, heads), BERT, number) for number in range(1, BERT.heads + 2)]
    for window in windows:
        window.check(BERT)
    covered = [(window.first_head + step) % BERT.heads for window in windows[:-1] for step in range(heads)]
    assert {covered.count(head) for head in range(BERT.heads)} == {heads}
    neurons = {(window.first_neuron + step) % BERT.ffn for window in windows for step in range(window.ffn[0])}
    assert neurons == set(range(BERT.ffn))
    assert windows[0] == uniform(BERT, heads)


def test_window_of_the_whole_model_stays_where_it_is() -> None:
    assert rolled(full(BERT), BERT, 5) == full(BERT)


@settings(max_examples=60)
@given(ARCHITECTURES, SEEDS)
def test_spread_makes_the_least_covered_layers_the_wide_ones_at_the_same_cost(
    architecture: Architecture, seed: int
) -> None:
    print(f"seed {seed}")
    drawn = random.Random(seed)
    covered = [drawn.random() for _ in range(architecture.layers)]
    for submodel in chain(Space(depth=True), architecture, ranking_of(architecture, seed), units):
        made = spread(submodel, architecture, covered)
        made.check(architecture)
        assert (units(made), made.layers) == (units(submodel), submodel.layers)
        for stack in architecture.stacks:
            kept = [place for place, layer in enumerate(made.layers) if layer in stack]
            kept.sort(key=lambda place: covered[made.layers[place]])
            assert [made.heads[place] for place in kept] == sorted((made.heads[p] for p in kept), reverse=True)


def test_spread_changes_nothing_where_all_are_covered_alike() -> None:
    uneven = Submodel((0, 1, 2, 3), (2, 3, 2, 3), (30, 50, 40, 50))
    assert spread(uneven, BERT, [1.0] * 4) == uneven
    assert spread(uneven, BERT, [0.0, 1.0, 0.5, 1.0]) == Submodel((0, 1, 2, 3), (3, 2, 3, 2), (50, 40, 50, 30))


def test_space_is_read_from_a_configuration() -> None:
    assert msgspec.json.decode(b'{"depth": true}', type=Space) == Space(depth=True)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"height": true}', type=Space)
