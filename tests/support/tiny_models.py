"""Random models of a few thousand parameters, one of each family, as Hugging Face writes them to a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

FAMILIES = ("bert", "roberta", "electra", "distilbert")
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
LABELS = ("first", "second", "third")

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "max_position_embeddings": 66,
}
_OWN_SIZES = {"electra": {"embedding_size": 16}, "distilbert": {"hidden_dim": 50}}


def save_tiny_model(folder: Path, family: str, *, seed: int = 0) -> Path:
    """Write ``config.json``, weights and ``tokenizer.json`` of a random model of ``family`` into ``folder``."""
    config = AutoConfig.for_model(family, pad_token_id=1, num_labels=len(LABELS))
    for name, size in (_SIZES | _OWN_SIZES.get(family, {})).items():
        setattr(config, name, size)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # the usual 0.02 leaves a tiny model almost constant
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def tiny_tokenizer() -> Tokenizer:
    """One id a word, between [CLS] and [SEP]."""
    words = ["[CLS]", "[PAD]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return tokenizer
