"""A transformer of somebody's own, as the README of ``edge_sdk/elastic`` adds one: names that no family has."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class PocketConfig(PreTrainedConfig):
    model_type = "pocket"

    vocab_size: int = 40
    hidden_size: int = 24
    num_hidden_layers: int = 3
    num_attention_heads: int = 6
    num_key_value_heads: int = 3
    intermediate_size: int = 50
    max_position_embeddings: int = 66


class Look(nn.Module):
    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.size = config.hidden_size // config.num_attention_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        shared = config.num_key_value_heads * self.size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key, self.value = nn.Linear(config.hidden_size, shared), nn.Linear(config.hidden_size, shared)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            project(hidden).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Think(nn.Module):
    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.wide = nn.Linear(config.hidden_size, config.intermediate_size)
        self.narrow = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.sigmoid(self.gate(hidden)) * self.wide(hidden))


class Block(nn.Module):
    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.look, self.think = Look(config), Think(config)
        self.first, self.second = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.look(self.first(hidden))
        return hidden + self.think(self.second(hidden))


class PocketModel(PreTrainedModel):
    config_class = PocketConfig

    def __init__(self, config: PocketConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.answer = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        hidden = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        mask = attention_mask.unsqueeze(-1)
        return SequenceClassifierOutput(logits=self.answer((hidden * mask).sum(1) / mask.sum(1)))


AutoConfig.register(PocketConfig.model_type, PocketConfig)
AutoModelForSequenceClassification.register(PocketConfig, PocketModel)
