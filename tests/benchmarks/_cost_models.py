"""The models of three families whose costs are measured: a pretrained MiniLM, and a ViT and a Llama from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from coordinator.demo.inputs import packaged_model, packaged_texts
from coordinator.models.compilation import load_or_compile
from coordinator.models.foundation import Foundation, load_foundation, quiet_transformers
from coordinator.models.fresh import FreshSizes, write_image_model
from coordinator.models.templates import Templates
from edge_sdk.data import ArrayExamples, Examples, PlainTexts
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.slicing import Shapes
from edge_sdk.elastic.submodel import Adapters, ModelTask

_EXAMPLES = 64
_PIXELS = 64
_VOCABULARY = 4000
_SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")


@dataclass(frozen=True)
class Subject:
    """A model and examples for it; ``folder`` has room for files."""

    folder: Path
    foundation: Foundation
    examples: Examples

    @cached_property
    def shapes(self) -> Shapes:
        """Of the full model's parameters."""
        return {name: values.shape for name, values in self.foundation.parameters.items()}

    @cached_property
    def costs(self) -> CostModel:
        """What is predicted."""
        return CostModel.of(self.foundation.architecture, self.shapes)

    @cached_property
    def templates(self) -> Templates:
        """Of its graphs; compiled once a machine."""
        return load_or_compile(self.foundation, user_cache_path("raffm-edge") / "templates")


def minilm(folder: Path, adapters: Adapters | None = None) -> Subject:
    """The packaged MiniLM, which classifies news: 22.7 million parameters."""
    texts = packaged_texts()
    chosen = np.random.default_rng(0).permutation(len(texts))[:_EXAMPLES]
    folder.mkdir(parents=True)
    foundation = load_foundation(packaged_model(), sorted(set(texts.labels)), 0, adapters=adapters)
    return Subject(folder, foundation, texts.take(chosen.tolist()))


def vit(folder: Path, adapters: Adapters | None = None) -> Subject:
    """A ViT that cuts images of 64 x 64 pixels into 64 patches: 10.8 million parameters."""
    sizes, labels = FreshSizes(layers=6, heads=6, hidden=384, ffn=1536), tuple("abcdefghij")
    model = write_image_model(
        folder / "model", sizes, labels=len(labels), image_size=_PIXELS, patch_size=8, channels=3, seed=0
    )
    pixels = np.random.default_rng(0).integers(0, 256, (_EXAMPLES, _PIXELS, _PIXELS, 3), dtype=np.uint8)
    examples = ArrayExamples(pixels, tuple(index % len(labels) for index in range(_EXAMPLES)))
    foundation = load_foundation(model, labels, 0, task=ModelTask.IMAGE_CLASSIFICATION, adapters=adapters)
    return Subject(folder, foundation, examples)


def llama(folder: Path, adapters: Adapters | None = None) -> Subject:
    """A Llama with grouped queries, which learns to go on with the news: 12.8 million parameters."""
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1024,
        max_position_embeddings=256,
        **{f"{name}_token_id": index for index, name in enumerate(("pad", "bos", "eos"))},
    )
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    texts = packaged_texts().texts
    _tokenizer(texts).save(str(folder / "model" / "tokenizer.json"))
    foundation = load_foundation(folder / "model", (), 0, task=ModelTask.TEXT_GENERATION, adapters=adapters)
    return Subject(folder, foundation, PlainTexts(texts[:_EXAMPLES]))


SUBJECTS: dict[str, Callable[[Path, Adapters | None], Subject]] = {"MiniLM": minilm, "ViT": vit, "Llama": llama}


def _tokenizer(texts: tuple[str, ...]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL[-1]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, special_tokens=list(_SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
