"""The families table: which axis of which parameter is elastic, and which part a parameter belongs to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_sdk.elastic.families import Axis, Unit, family_names, family_of, is_adapter
from edge_sdk.elastic.submodel import Architecture, ModelTask, Role, TrainablePart
from edge_sdk.errors import UnsupportedArchitectureError
from tests.support.bert import TINY, shapes

ALL, REST, ADAPTERS, HEAD = TrainablePart
T5 = Architecture("t5", 5, 4, 2, 12, 8, 11, 5, 0, encoder_layers=3, task=ModelTask.TEXT2TEXT_GENERATION)


@pytest.mark.parametrize(
    ("family", "parameter", "axes"),
    [
        ("bert", "bert.encoder.layer.11.attention.self.query.weight", (Axis.QUERIES, None)),
        ("bert", "bert.encoder.layer.11.attention.self.key.bias", (Axis.KEYS,)),
        ("bert", "bert.encoder.layer.11.attention.self.value.weight", (Axis.KEYS, None)),
        ("bert", "bert.encoder.layer.11.attention.output.dense.weight", (None, Axis.QUERIES)),
        ("bert", "bert.encoder.layer.11.attention.output.dense.bias", ()),
        ("bert", "bert.encoder.layer.11.attention.output.LayerNorm.weight", ()),
        ("bert", "bert.encoder.layer.11.intermediate.dense.weight", (Axis.FFN, None)),
        ("bert", "bert.encoder.layer.11.intermediate.dense.bias", (Axis.FFN,)),
        ("bert", "bert.encoder.layer.11.output.dense.weight", (None, Axis.FFN)),
        ("bert", "bert.embeddings.word_embeddings.weight", ()),
        ("bert", "bert.pooler.dense.weight", ()),
        ("bert", "bert.encoder.layer.1.attention.self.query.lora_A.weight", (Axis.RANK, None)),
        ("bert", "bert.encoder.layer.1.attention.self.query.lora_B.weight", (Axis.QUERIES, Axis.RANK)),
        ("bert", "bert.encoder.layer.1.output.dense.lora_A.weight", (Axis.RANK, Axis.FFN)),
        ("bert", "bert.encoder.layer.1.output.dense.lora_B.weight", (None, Axis.RANK)),
        ("bert", "bert.encoder.layer.1.attention.self.key.lora_magnitude_vector.weight", (Axis.KEYS,)),
        ("bert", "bert.encoder.layer.1.attention.self.key.ia3_l", (Axis.KEYS, None)),
        ("bert", "bert.encoder.layer.1.attention.output.dense.ia3_l", ()),
        ("bert", "bert.encoder.layer.1.output.dense.ia3_l", (None, Axis.FFN)),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (None, Axis.FUSED)),
        ("gpt2", "transformer.h.0.attn.c_attn.bias", (Axis.FUSED,)),
        ("gpt2", "transformer.h.0.attn.c_proj.weight", (Axis.QUERIES, None)),
        ("gpt2", "transformer.h.0.mlp.c_proj.weight", (Axis.FFN, None)),
        ("gpt2", "transformer.h.0.attn.c_attn.lora_B.weight", (Axis.FUSED, Axis.RANK)),
        ("llama", "model.layers.2.mlp.gate_proj.weight", (Axis.FFN, None)),
        ("qwen3", "model.layers.2.self_attn.q_norm.weight", ()),
        ("t5", "decoder.block.1.layer.1.EncDecAttention.o.weight", (None, Axis.QUERIES)),
        ("t5", "decoder.block.1.layer.2.DenseReluDense.wi_1.weight", (Axis.FFN, None)),
        ("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (None, Axis.HEADS)),
        ("sensor-transformer", "layers.0.attention.o.weight", (None, Axis.QUERIES)),
        ("sensor-transformer", "embeddings.projection.weight", ()),
    ],
)
def test_axes_of_a_parameter(family: str, parameter: str, axes: tuple[Axis | None, ...]) -> None:
    assert family_of(family).axes(parameter) == axes


def test_axes_have_the_rank_of_every_parameter_or_there_are_none() -> None:
    assert all(len(family_of("bert").axes(name)) in {0, len(shape)} for name, shape in shapes(TINY).items())


@pytest.mark.parametrize(
    ("axis", "unit", "blocks", "entries"),
    [
        (Axis.QUERIES, Unit.HEADS, 1, 6),
        (Axis.KEYS, Unit.HEADS, 1, 2),
        (Axis.FUSED, Unit.HEADS, 3, 2),
        (Axis.HEADS, Unit.HEADS, 1, 1),
        (Axis.FFN, Unit.FFN, 1, 1),
        (Axis.RANK, Unit.RANK, 1, 1),
    ],
)
def test_axis_counts_a_unit_in_blocks_of_entries(axis: Axis, unit: Unit, blocks: int, entries: int) -> None:
    assert (axis.unit, axis.blocks, axis.entries(replace(TINY, group_size=3))) == (unit, blocks, entries)


@pytest.mark.parametrize(
    ("parameter", "index"),
    [
        ("encoder.block.2.layer.0.SelfAttention.q.weight", 2),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", 3),
        ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", None),
        ("encoder.final_layer_norm.weight", None),
        ("shared.weight", None),
    ],
)
def test_layer_index_counts_over_both_stacks(parameter: str, index: int | None) -> None:
    assert family_of("t5").layer_index(parameter, T5) == index


def test_layer_prefix_and_index_are_inverse() -> None:
    family = family_of("t5")
    assert [family.layer_index(f"{family.layer_prefix(layer, T5)}x.weight", T5) for layer in range(5)] == [*range(5)]
    with pytest.raises(IndexError):
        family.layer_prefix(5, T5)


@pytest.mark.parametrize(
    ("part", "trained"),
    [
        (ALL, {"embeddings", "layer", "adapter", "head"}),
        (REST, {"layer", "adapter", "head"}),
        (ADAPTERS, {"adapter", "head"}),
        (HEAD, {"head"}),
    ],
)
@pytest.mark.parametrize("model_type", family_names())
def test_trainable_part_takes_what_it_names(model_type: str, part: TrainablePart, trained: set[str]) -> None:
    family = family_of(model_type)
    query = family.stacks[0].layer.format(0) + family.stacks[0].attentions[0].q
    examples = {
        "embeddings": family.embeddings[0] + "weight",
        "layer": query + ".weight",
        "adapter": query + ".lora_A.weight",
        "head": family.head[0] + "weight",
    }
    assert {what for what, name in examples.items() if family.is_trainable(name, part)} == trained


@pytest.mark.parametrize("part", list(TrainablePart))
def test_frozen_parameter_is_trained_in_no_part(part: TrainablePart) -> None:
    assert not family_of("sensor-transformer").is_trainable("embeddings.scale", part)


@pytest.mark.parametrize(("part", "is_trained"), [(ALL, True), (REST, False), (HEAD, False)])
def test_position_bias_counts_as_an_embedding(part: TrainablePart, is_trained: bool) -> None:
    bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert family_of("t5").is_trainable(bias, part) is is_trained


@pytest.mark.parametrize("name", ["x.lora_A.weight", "x.lora_magnitude_vector.weight", "x.ia3_l"])
def test_what_peft_adds_is_an_adapter(name: str) -> None:
    assert is_adapter(name)
    assert not is_adapter("bert.encoder.layer.0.output.dense.weight")


@pytest.mark.parametrize("model_type", family_names())
def test_every_role_has_a_module_whose_weight_is_elastic(model_type: str) -> None:
    family = family_of(model_type)
    for stack in family.stacks:
        for role in Role:
            assert stack.modules(role)
            assert all(any(family.axes(f"{stack.layer.format(3)}{path}.weight")) for path in stack.modules(role))


def test_unknown_architecture_is_refused_by_name_with_what_to_do() -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"'mamba'.*bert.*families\.py"):
        family_of("mamba")
