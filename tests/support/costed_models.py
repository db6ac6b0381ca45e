"""The models whose processes ``tests/unit/elastic/measured_*.csv`` list, as sizes and shapes alone."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig, ViTConfig

from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, Architecture, ModelTask, Role
from edge_sdk.modules.adapters import inject_adapters
from edge_sdk.modules.building import auto_class, parameter_name

_SIX = {"num_hidden_layers": 6, "hidden_size": 384}
_CLASSIFIER = _SIX | {"num_attention_heads": 12, "intermediate_size": 1536, "num_labels": 5}
_IMAGES = _SIX | {"num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 10}
_GENERATOR = _SIX | {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1024}
_MODELS: dict[str, tuple[PreTrainedConfig, Architecture]] = {
    "minilm": (
        BertConfig(**_CLASSIFIER),
        Architecture("bert", 6, 12, 32, 1536, 384, 30522, 512, 5),
    ),
    "vit": (
        ViTConfig(**_IMAGES, image_size=64, patch_size=8),
        Architecture("vit", 6, 6, 64, 1536, 384, 0, 65, 10, task=ModelTask.IMAGE_CLASSIFICATION),
    ),
    "llama": (
        LlamaConfig(**_GENERATOR, vocab_size=4000),
        Architecture("llama", 6, 4, 48, 1024, 384, 4000, 256, 0, 2, task=ModelTask.TEXT_GENERATION),
    ),
    "gpt2": (
        GPT2Config(vocab_size=4000, n_positions=256, n_embd=256, n_layer=6, n_head=8),
        Architecture("gpt2", 6, 8, 32, 1024, 256, 4000, 256, 0, task=ModelTask.TEXT_GENERATION),
    ),
}
_ADAPTERS = {
    "": None,
    "lora": Adapters(rank=8),
    "lora-all": Adapters(rank=16, targets=tuple(Role)),
    "dora": Adapters.of(AdapterMethod.DORA, 8),
    "dora-rows": Adapters(rank=16, targets=(Role.Q, Role.K, Role.V, Role.UP), method=AdapterMethod.DORA),
    "ia3": Adapters.of(AdapterMethod.IA3, 0),
    "ia3-all": Adapters(targets=tuple(Role), method=AdapterMethod.IA3),
}


@functools.cache
def cost_model(name: str) -> CostModel:
    """Of ``minilm``, ``vit``, ``llama`` or ``gpt2``, with adapters where they usually are.

    With ``-all`` they are on all modules, with ``-rows`` on those whose outputs are elastic.
    """
    family, _, adapters = name.partition("-")
    config, architecture = _MODELS[family]
    architecture = replace(architecture, adapters=_ADAPTERS[adapters])
    with torch.device("meta"):
        module = auto_class(architecture.task, config).from_config(config)
        inject_adapters(module, architecture, architecture.adapter_rank)
    shapes = {parameter_name(own): tuple(value.shape) for own, value in module.named_parameters()}
    return CostModel.of(architecture, shapes)
