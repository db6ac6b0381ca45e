"""The families table: which axis of which parameter is elastic."""

import pytest

from edge_sdk.elastic.families import Unit, family_of
from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.errors import UnsupportedArchitectureError
from tests.support.bert import TINY, shapes

BERT = family_of("bert")
LAYER = "bert.encoder.layer.11."


@pytest.mark.parametrize(
    ("parameter", "axes"),
    [
        (LAYER + "attention.self.query.weight", (Unit.HEADS, None)),
        (LAYER + "attention.self.key.bias", (Unit.HEADS,)),
        (LAYER + "attention.self.value.weight", (Unit.HEADS, None)),
        (LAYER + "attention.output.dense.weight", (None, Unit.HEADS)),
        (LAYER + "attention.output.dense.bias", (None,)),
        (LAYER + "attention.output.LayerNorm.weight", (None,)),
        (LAYER + "intermediate.dense.weight", (Unit.FFN, None)),
        (LAYER + "intermediate.dense.bias", (Unit.FFN,)),
        (LAYER + "output.dense.weight", (None, Unit.FFN)),
        (LAYER + "output.dense.bias", (None,)),
        ("bert.embeddings.word_embeddings.weight", (None, None)),
        ("bert.embeddings.LayerNorm.bias", (None,)),
        ("bert.pooler.dense.weight", (None, None)),
        ("classifier.bias", (None,)),
    ],
)
def test_axes_of_bert_parameters(parameter: str, axes: tuple[Unit | None, ...]) -> None:
    assert BERT.axes(parameter) == axes


def test_axes_have_the_rank_of_every_parameter() -> None:
    assert all(len(BERT.axes(name)) == len(shape) for name, shape in shapes(TINY).items())


@pytest.mark.parametrize(("parameter", "index"), [(LAYER + "output.dense.bias", 11), ("classifier.weight", None)])
def test_layer_index_is_read_from_the_name(parameter: str, index: int | None) -> None:
    assert BERT.layer_index(parameter) == index


@pytest.mark.parametrize(
    ("part", "trained"),
    [
        (TrainablePart.ALL, {"embeddings", "layer", "head"}),
        (TrainablePart.NO_EMBEDDINGS, {"layer", "head"}),
        (TrainablePart.HEAD, {"head"}),
    ],
)
@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "distilbert"])
def test_trainable_part_takes_what_it_names(model_type: str, part: TrainablePart, trained: set[str]) -> None:
    family = family_of(model_type)
    examples = {
        "embeddings": family.embeddings[0] + ".word_embeddings.weight",
        "layer": family.layer.format(0) + family.q + ".weight",
        "head": family.head[0] + "weight",
    }
    assert {what for what, name in examples.items() if family.is_trainable(name, part)} == trained


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "distilbert"])
def test_every_family_names_all_its_modules_apart(model_type: str) -> None:
    family = family_of(model_type)
    modules = {family.q, family.k, family.v, family.o, family.up, family.down}
    assert len(modules) == 6
    assert family.axes(family.layer.format(3) + family.down + ".weight") == (None, Unit.FFN)


def test_unknown_architecture_is_refused_by_name_with_what_to_do() -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"'mamba'.*bert.*families\.py"):
        family_of("mamba")
