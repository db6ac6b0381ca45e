"""Submodels: what they may ask for."""

from dataclasses import replace
from itertools import pairwise

import pytest

from edge_sdk.elastic.submodel import Submodel, full, uniform
from edge_sdk.errors import ConfigurationError
from tests.support.bert import MINILM, TINY


def test_full_submodel_has_everything() -> None:
    assert full(TINY) == Submodel((0, 1), (4, 4), (12, 12))


@pytest.mark.parametrize(("heads", "ffn"), [(12, 1536), (9, 1152), (6, 768), (1, 128)])
def test_uniform_submodel_takes_the_same_share_of_heads_and_neurons(heads: int, ffn: int) -> None:
    assert uniform(MINILM, heads) == Submodel(tuple(range(6)), (heads,) * 6, (ffn,) * 6)


def test_uniform_submodel_has_at_least_one_neuron() -> None:
    assert uniform(replace(TINY, ffn=2), 1).ffn == (1, 1)


def test_submodels_of_the_ladder_rise_in_width() -> None:
    ladder = [uniform(MINILM, heads) for heads in range(1, 13)]
    assert all(small.ffn < large.ffn and small.heads < large.heads for small, large in pairwise(ladder))


@pytest.mark.parametrize(
    ("layers", "heads", "ffn", "complaint"),
    [
        ((), (), (), "one head count"),
        ((0, 1), (1,), (1, 1), "one head count"),
        ((0, 1), (1, 1), (1,), "one head count"),
        ((1, 0), (1, 1), (1, 1), "must rise within 0..1"),
        ((0, 0), (1, 1), (1, 1), "must rise"),
        ((0, 2), (1, 1), (1, 1), "must rise"),
        ((-1,), (1,), (1,), "must rise"),
        ((0,), (0,), (1,), r"heads a layer; the model has 1..4"),
        ((0,), (5,), (1,), "heads a layer"),
        ((0,), (1,), (13,), r"FFN neurons a layer; the model has 1..12"),
        ((0,), (1,), (0,), "FFN neurons"),
    ],
)
def test_submodel_that_the_model_does_not_have_is_refused(
    layers: tuple[int, ...], heads: tuple[int, ...], ffn: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Submodel(layers, heads, ffn).check(TINY)


@pytest.mark.parametrize("heads", [0, 5, -1])
def test_uniform_submodel_beyond_the_model_is_refused(heads: int) -> None:
    with pytest.raises(ConfigurationError):
        uniform(TINY, heads)


def test_width_names_ranges_where_layers_differ() -> None:
    assert full(TINY).width == "4 heads, 12 FFN, 2 layers"
    assert Submodel((0, 1), (1, 4), (3, 3)).width == "1-4 heads, 3 FFN, 2 layers"
