"""Modules of submodels: names, ties, widths that follow the weights, and layers that differ in kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.torch_modules import torch_module
from edge_sdk.elastic.slicing import extract, slices_of
from edge_sdk.elastic.submodel import Adapters, ModelTask, Submodel, TrainablePart
from edge_sdk.modules.building import bare_module, full_name, parameter_name, submodel_module
from tests.support.masking import drop_layers
from tests.support.tiny_models import LABELS, TASKS, save_tiny_model, tiny_inputs

GENERATE = ModelTask.TEXT_GENERATION


def foundation_of(folder: Path, family: str, *, adapters: Adapters | None = None, **settings: object) -> Foundation:
    task = GENERATE if GENERATE in TASKS[family] else TASKS[family][0]
    saved = save_tiny_model(folder, family, task=task, **settings)
    return load_foundation(saved, () if task.generates else LABELS, seed=0, task=task, adapters=adapters)


def cut(foundation: Foundation, submodel: Submodel) -> dict[str, np.ndarray]:
    shapes = {name: values.shape for name, values in foundation.parameters.items()}
    slices = slices_of(submodel, foundation.architecture, foundation.family, shapes)
    return extract(foundation.parameters, slices)


@pytest.mark.parametrize(
    ("own", "outside"),
    [
        ("layers.0.q.base_layer.weight", "layers.0.q.weight"),
        ("layers.0.q.lora_A.default.weight", "layers.0.q.lora_A.weight"),
        ("layers.0.q.lora_magnitude_vector.default.weight", "layers.0.q.lora_magnitude_vector.weight"),
        ("layers.0.q.ia3_l.default", "layers.0.q.ia3_l"),
        ("layers.0.default.weight", "layers.0.default.weight"),
    ],
)
def test_parameter_name_is_without_what_peft_adds(own: str, outside: str) -> None:
    assert parameter_name(own) == outside


def test_full_names_count_the_kept_layers_of_each_stack_anew(tmp_path: Path) -> None:
    foundation = foundation_of(tmp_path, "t5")
    submodel = Submodel((1, 2, 4), (2, 2, 3), (5, 6, 7))
    names = {
        own: full_name(own, foundation.architecture, submodel)
        for own, _ in torch_module(foundation, submodel).named_parameters()
    }

    assert names["encoder.block.1.layer.0.SelfAttention.q.weight"] == "encoder.block.2.layer.0.SelfAttention.q.weight"
    assert (
        names["decoder.block.0.layer.1.EncDecAttention.k.weight"] == "decoder.block.1.layer.1.EncDecAttention.k.weight"
    )
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert names[bias] == bias
    assert set(names.values()) == cut(foundation, submodel).keys()


def test_submodel_shares_the_memory_of_its_parameters_and_ties_what_is_tied(tmp_path: Path) -> None:
    foundation = foundation_of(tmp_path, "gpt2")
    submodel = Submodel((0, 2), (1, 3), (20, 30))
    parameters = cut(foundation, submodel)
    module = submodel_module(foundation.config_json, foundation.architecture, submodel, parameters)
    parameters["transformer.wte.weight"][3, 4] = 7

    assert module.lm_head.weight is module.transformer.wte.weight
    assert module.lm_head.weight[3, 4] == 7
    assert not module.training
    assert not module.config.use_cache


@pytest.mark.parametrize("family", ["gpt2", "t5", "llama"])
def test_bare_module_follows_the_width_of_parameters_that_are_put_into_it(tmp_path: Path, family: str) -> None:
    foundation = foundation_of(tmp_path, family, adapters=Adapters(rank=4))
    layers = tuple(range(foundation.architecture.layers))
    submodel = Submodel(layers, (2,) * len(layers), (9,) * len(layers), 4)
    parameters, bare = cut(foundation, submodel), bare_module(foundation.config_json, foundation.architecture, layers)
    names = {own: full_name(own, foundation.architecture, submodel) for own, _ in bare.named_parameters()}
    tensors = {own: torch.from_numpy(parameters[name]) for own, name in names.items()}
    inputs = tiny_inputs(foundation)

    narrow = functional_call(bare, tensors, (), inputs).logits
    assert torch.equal(narrow, torch_module(foundation, submodel)(**inputs).logits)
    assert bare(**inputs).logits.shape == narrow.shape


def test_bare_module_requires_gradients_of_all_that_can_be_trained(tmp_path: Path) -> None:
    foundation = foundation_of(tmp_path, "sensor-transformer", adapters=Adapters())
    module = bare_module(foundation.config_json, foundation.architecture, (0, 1, 2))

    frozen = {parameter_name(own) for own, value in module.named_parameters() if not value.requires_grad}
    assert frozen == {"embeddings.mean", "embeddings.scale"}
    assert all(not foundation.family.is_trainable(name, TrainablePart.ALL) for name in frozen)


def test_layers_keep_their_kind_of_attention(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    settings = {"use_sliding_window": True, "sliding_window": 2, "layer_types": kinds}
    foundation = foundation_of(tmp_path, "qwen2", **settings)
    submodel = Submodel((1, 2), (3, 3), (50, 50))
    module, whole = torch_module(foundation, submodel), torch_module(foundation)
    drop_layers(whole, foundation, submodel.layers)
    inputs = tiny_inputs(foundation)

    assert module.config.layer_types == kinds[1:]
    assert torch.allclose(module(**inputs).logits, whole(**inputs).logits, rtol=0, atol=1e-5)
    config = json.dumps(json.loads(foundation.config_json) | {"layer_types": ["full_attention"] * 3}).encode()
    other = submodel_module(config, foundation.architecture, submodel, cut(foundation, submodel))
    assert not torch.allclose(module(**inputs).logits, other(**inputs).logits, atol=1e-2)
