"""Which narrower widths are trained in the same step."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from coordinator.planning.nesting import Nesting, draw, nested_widths
from edge_sdk.elastic.submodel import Adapters, Architecture, Submodel, full, uniform

BERT = Architecture("bert", 3, 12, 8, 240, 96, 40, 66, 3)
LORA = replace(BERT, adapters=Adapters(rank=8))
FJORD = Nesting(shares=(0.25, 0.5))
SANDWICH = Nesting(shares=(0.25,), is_random=True)


def test_fixed_shares_are_of_the_whole_model_widest_first() -> None:
    assert nested_widths(full(BERT), BERT, FJORD) == (uniform(BERT, 6), uniform(BERT, 3))
    assert nested_widths(uniform(BERT, 5), BERT, FJORD) == (uniform(BERT, 3),)


def test_submodel_as_narrow_as_its_nested_ones_has_none() -> None:
    assert nested_widths(uniform(BERT, 3), BERT, FJORD) == ()
    assert nested_widths(uniform(BERT, 1), BERT, FJORD) == ()
    assert nested_widths(full(BERT), BERT, Nesting(shares=())) == ()


def test_nested_is_a_prefix_of_every_layer_of_an_uneven_submodel() -> None:
    uneven = Submodel((0, 2), (2, 9), (200, 40))
    assert nested_widths(uneven, BERT, FJORD) == (
        Submodel((0, 2), (2, 6), (120, 40)),
        Submodel((0, 2), (2, 3), (60, 40)),
    )


def test_nested_of_a_window_counts_from_its_own_first_unit() -> None:
    window = replace(uniform(BERT, 5), first_head=4, first_neuron=80)
    assert nested_widths(window, BERT, FJORD) == (uniform(BERT, 3),)
    assert nested_widths(replace(uniform(BERT, 3), first_head=4), BERT, FJORD) == ()


def test_rank_narrows_with_the_width() -> None:
    assert [nested.adapter_rank for nested in nested_widths(full(LORA), LORA, FJORD)] == [4, 2]


@pytest.mark.parametrize(("drawn", "heads"), [(0.0, (3,)), (0.5, (8, 3)), (0.9, (11, 3)), (1.0, (3,))])
def test_random_width_lies_between_the_smallest_and_the_submodel(drawn: float, heads: tuple[int, ...]) -> None:
    found = nested_widths(full(BERT), BERT, SANDWICH, drawn)
    assert tuple(nested.heads[0] for nested in found) == heads


def test_draws_are_the_same_for_a_round_and_differ_between_rounds_and_seeds() -> None:
    drawn = [draw(seed, number) for seed in range(20) for number in range(1, 21)]
    assert drawn == [draw(seed, number) for seed in range(20) for number in range(1, 21)]
    assert len(set(drawn)) == 400
    assert 0.4 < sum(drawn) / 400 < 0.6


def test_nesting_is_read_from_a_configuration() -> None:
    decoded = msgspec.json.decode(b'{"shares": [0.5, 0.25], "is_random": true}', type=Nesting)
    assert decoded == Nesting(shares=(0.5, 0.25), is_random=True)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"shares": [1.5]}', type=Nesting)
