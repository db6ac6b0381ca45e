"""Random models of a few thousand parameters, of each family, as Hugging Face writes them to a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig
from transformers.utils import logging

from coordinator.models.foundation import Foundation
from coordinator.models.permutation import LayerOrder
from edge_sdk.elastic.submodel import Architecture, ModelTask, Submodel
from edge_sdk.modules.building import auto_class
from edge_sdk.protocol.graphs import DECODER_INPUT, TEXT_TASKS

FAMILIES = ("bert", "roberta", "electra", "distilbert")
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
LABELS = ("first", "second", "third")

_CLASSIFY, _TAG, _GENERATE = ModelTask.TEXT_CLASSIFICATION, ModelTask.TOKEN_CLASSIFICATION, ModelTask.TEXT_GENERATION
TASKS = {
    **dict.fromkeys(FAMILIES, (_CLASSIFY, _TAG)),
    **dict.fromkeys(("vit", "deit"), (ModelTask.IMAGE_CLASSIFICATION,)),
    **dict.fromkeys(("gpt2", "llama", "mistral", "qwen2", "qwen3"), (_CLASSIFY, _TAG, _GENERATE)),
    "t5": (ModelTask.TEXT2TEXT_GENERATION,),
    "sensor-transformer": (ModelTask.TIME_SERIES_CLASSIFICATION,),
}
"""What each family can do; the first is what :func:`save_tiny_model` makes it for."""
ALL_FAMILIES = tuple(TASKS)

_SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 50}
_TEXT_SIZES = _SIZES | {"vocab_size": 40, "max_position_embeddings": 66, "bos_token_id": 0, "eos_token_id": 2}
_GROUPED_SIZES = _TEXT_SIZES | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
_IMAGE_SIZES = _SIZES | {"image_size": 12, "patch_size": 4}
_OWN_SIZES = {
    "electra": _TEXT_SIZES | {"embedding_size": 16},
    "distilbert": _TEXT_SIZES | {"hidden_dim": 50},
    "vit": _IMAGE_SIZES,
    "deit": _IMAGE_SIZES,
    "gpt2": _TEXT_SIZES | {"n_inner": 50},
    "llama": _GROUPED_SIZES,
    "mistral": _GROUPED_SIZES | {"sliding_window": 5},
    "qwen2": _GROUPED_SIZES,
    "qwen3": _GROUPED_SIZES,
    "t5": {
        "vocab_size": 40,
        "d_model": 24,
        "d_kv": 6,
        "d_ff": 50,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 1,
    },
    "sensor-transformer": _SIZES | {"head_dim": 6, "steps": 24, "patch_steps": 4, "channels": 5},
}


def save_tiny_model(
    folder: Path, family: str, *, seed: int = 0, task: ModelTask | None = None, **settings: object
) -> Path:
    """Write ``config.json``, weights and, for texts, ``tokenizer.json`` of a random model into ``folder``.

    ``task`` is by default the first of ``TASKS``; ``settings`` replace those of the configuration.
    """
    task = task or TASKS[family][0]
    sizes = _OWN_SIZES.get(family, _TEXT_SIZES)
    defaults = {"pad_token_id": 1, "num_labels": len(LABELS), "architectures": []}
    config = AutoConfig.for_model(family, **defaults | sizes | settings)
    torch.manual_seed(seed)
    model = auto_class(task, config).from_config(config)
    randomise(model)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if task in TEXT_TASKS:
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def in_every_stack(submodel: Submodel, architecture: Architecture) -> Submodel:
    """``submodel``, of one stack, with the same layers of an encoder-decoder's decoder; heads of a stack are equal."""
    if not architecture.encoder_layers:
        return submodel
    encoder, decoder = architecture.stacks
    kept = sorted({min(encoder.stop + layer, decoder.stop - 1) for layer in submodel.layers})
    heads = (submodel.heads[0],) * len(submodel.layers) + (submodel.heads[-1],) * len(kept)
    return replace(
        submodel, layers=(*submodel.layers, *kept), heads=heads, ffn=(*submodel.ffn, *submodel.ffn[-len(kept) :])
    )


def randomise(model: torch.nn.Module) -> None:
    """Normal values of a size that lets a tiny model's output differ; the usual 0.02 leaves it almost constant."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if name == "embeddings.scale":
            parameter.data = parameter.data.abs() + 0.5


def tiny_tokenizer() -> Tokenizer:
    """One id a word, between [CLS] and [SEP]."""
    words = ["[CLS]", "[PAD]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return tokenizer


def tiny_inputs(foundation: Foundation, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Three random examples, the first text padded; images and windows are float64."""
    random = torch.Generator().manual_seed(seed)
    task = foundation.architecture.task
    if task is ModelTask.IMAGE_CLASSIFICATION:
        return {"pixel_values": torch.randn(3, *foundation.input_shape, generator=random, dtype=torch.float64)}
    if task is ModelTask.TIME_SERIES_CLASSIFICATION:
        return {"series": torch.randn(3, *foundation.input_shape, generator=random, dtype=torch.float64)}
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[0, 6:] = 0
    ids = torch.where(mask == 1, torch.randint(3, 40, mask.shape, generator=random), 1)
    texts = {"input_ids": ids, "attention_mask": mask}
    if foundation.architecture.encoder_layers:
        texts[DECODER_INPUT] = torch.randint(3, 40, (3, 7), generator=random)
    return texts


def random_orders(foundation: Foundation, seed: int) -> list[LayerOrder]:
    """One order of heads for each stack that shares a position bias, else one for each layer."""
    random, sizes = np.random.default_rng(seed), foundation.architecture
    heads = [random.permutation(sizes.heads) for _ in range(sizes.layers)]
    if sizes.encoder_layers:
        heads = [heads[stack.start] for stack in sizes.stacks for _ in stack]
    return [LayerOrder(of_layer, random.permutation(sizes.ffn)) for of_layer in heads]
