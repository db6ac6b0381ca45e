"""Submodels: what they may ask for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from edge_sdk.elastic.submodel import AdapterMethod, Adapters, Role, Submodel, full, uniform
from edge_sdk.errors import ConfigurationError
from tests.support.bert import MINILM, TINY

ADAPTED = replace(TINY, adapters=Adapters(rank=3))
TWO_STACKS = replace(TINY, layers=5, encoder_layers=3)


def test_full_submodel_has_everything() -> None:
    assert full(TINY) == Submodel((0, 1), (4, 4), (12, 12))
    assert full(ADAPTED) == Submodel((0, 1), (4, 4), (12, 12), adapter_rank=3)


@pytest.mark.parametrize(("heads", "ffn"), [(12, 1536), (9, 1152), (6, 768), (1, 128)])
def test_uniform_submodel_takes_the_same_share_of_heads_and_neurons(heads: int, ffn: int) -> None:
    assert uniform(MINILM, heads) == Submodel(tuple(range(6)), (heads,) * 6, (ffn,) * 6)


def test_uniform_submodel_has_at_least_one_neuron() -> None:
    assert uniform(replace(TINY, ffn=2), 1).ffn == (1, 1)


def test_uniform_submodel_keeps_the_rank_of_adapters() -> None:
    assert uniform(ADAPTED, 1).adapter_rank == 3


@pytest.mark.parametrize(
    ("method", "rank", "targets"),
    [
        (AdapterMethod.LORA, 6, (Role.Q, Role.V)),
        (AdapterMethod.DORA, 6, (Role.Q, Role.V)),
        (AdapterMethod.IA3, 0, (Role.K, Role.V, Role.DOWN)),
    ],
)
def test_adapters_of_a_method_have_its_targets_and_a_rank_where_it_has_one(
    method: AdapterMethod, rank: int, targets: tuple[Role, ...]
) -> None:
    adapted = replace(TINY, adapters=Adapters.of(method, 6))
    assert adapted.adapters.targets == targets
    assert full(adapted).adapter_rank == rank


def test_submodels_of_the_ladder_rise_in_width() -> None:
    ladder = [uniform(MINILM, heads) for heads in range(1, 13)]
    assert all(small.ffn < large.ffn and small.heads < large.heads for small, large in pairwise(ladder))


def test_stacks_are_encoder_and_decoder_or_one() -> None:
    assert TINY.stacks == (range(2),)
    assert TWO_STACKS.stacks == (range(3), range(3, 5))


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


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_adapter_rank_that_the_model_does_not_have_is_refused(rank: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"adapter rank {rank}; the model has 1\.\.3"):
        Submodel((0,), (1,), (1,), adapter_rank=rank).check(ADAPTED)


def test_adapter_rank_without_adapters_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"adapter rank 1; the model has 0\.\.0"):
        Submodel((0,), (1,), (1,), adapter_rank=1).check(TINY)


@pytest.mark.parametrize(("first_head", "first_neuron"), [(4, 0), (-1, 0), (0, 12), (0, -1)])
def test_window_that_starts_outside_of_the_model_is_refused(first_head: int, first_neuron: int) -> None:
    with pytest.raises(ConfigurationError, match=f"starts at head {first_head} and neuron {first_neuron}"):
        Submodel((0,), (1,), (1,), 0, first_head, first_neuron).check(TINY)


def test_layers_of_one_stack_have_one_number_of_heads() -> None:
    Submodel((0, 2, 3), (2, 2, 1), (1, 2, 3)).check(TWO_STACKS)
    with pytest.raises(ConfigurationError, match=r"has \[1, 2\] heads in layers 0\.\.2"):
        Submodel((0, 2, 3), (2, 1, 1), (1, 2, 3)).check(TWO_STACKS)


def test_submodel_without_a_decoder_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"has \[\] heads in layers 3\.\.4"):
        Submodel((0, 2), (2, 2), (1, 2)).check(TWO_STACKS)


@pytest.mark.parametrize("heads", [0, 5, -1])
def test_uniform_submodel_beyond_the_model_is_refused(heads: int) -> None:
    with pytest.raises(ConfigurationError):
        uniform(TINY, heads)


def test_width_names_ranges_where_layers_differ() -> None:
    assert full(TINY).width == "4 heads, 12 FFN, 2 layers"
    assert full(ADAPTED).width == "4 heads, 12 FFN, 2 layers, rank 3"
    assert Submodel((0, 1), (1, 4), (3, 3)).width == "1-4 heads, 3 FFN, 2 layers"
