"""A small pre-norm transformer for windows of a sensor's channels, as a Hugging Face model.

A window is cut into patches of a few steps each, like an image (arXiv 2010.11929, 2211.14730). Each patch becomes a
token, and the final state of a class token is classified. The model itself standardises windows, by the mean and scale
of the training data.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from edge_sdk.errors import ConfigurationError


class SensorTransformerConfig(PreTrainedConfig):
    """Sizes: a window has ``steps`` steps of ``channels`` channels, and a patch ``patch_steps`` of these steps."""

    model_type = "sensor-transformer"

    channels: int = 6
    steps: int = 128
    patch_steps: int = 8
    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 8
    head_dim: int = 8
    intermediate_size: int = 256
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    @property
    def patches(self) -> int:
        """The number of patches in a window; ``ConfigurationError`` if it is not whole."""
        if self.steps % self.patch_steps:
            raise ConfigurationError(
                f"{self.steps} steps cannot be cut into patches of {self.patch_steps}; choose a divisor"
            )
        return self.steps // self.patch_steps


class SensorEmbeddings(nn.Module):
    """Windows to tokens; ``mean`` and ``scale`` (channels,) belong to the data and are never trained."""

    def __init__(self, config: SensorTransformerConfig) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(config.channels), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(config.channels), requires_grad=False)
        self.projection = nn.Linear(config.patch_steps * config.channels, config.hidden_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.positions = nn.Parameter(torch.zeros(1, config.patches + 1, config.hidden_size))

    def forward(self, series: Tensor) -> Tensor:
        """(batch, steps, channels) -> (batch, 1 + patches, hidden)."""
        patches = self.positions.shape[1] - 1
        standard = (series - self.mean) / self.scale
        tokens = self.projection(standard.reshape(-1, patches, self.projection.weight.shape[1]))
        first = self.class_token.expand(series.shape[0], -1, -1)
        return torch.cat((first, tokens), dim=1) + self.positions


class SensorAttention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2); the number of heads follows from the weights."""

    def __init__(self, config: SensorTransformerConfig) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q = nn.Linear(config.hidden_size, width)
        self.k = nn.Linear(config.hidden_size, width)
        self.v = nn.Linear(config.hidden_size, width)
        self.o = nn.Linear(width, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> the same shape."""
        q, k, v = (self._heads(project(hidden)) for project in (self.q, self.k, self.v))  # (batch, heads, tokens, size)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)  # (batch, heads, tokens, tokens)
        mixed = (functional.softmax(scores, dim=-1) @ v).transpose(1, 2)
        return self.o(mixed.reshape(*hidden.shape[:2], -1))

    def _heads(self, values: Tensor) -> Tensor:
        return values.view(*values.shape[:2], -1, self.head_dim).transpose(1, 2)


class SensorFeedForward(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, config: SensorTransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> the same shape."""
        return self.down(functional.gelu(self.up(hidden)))


class SensorLayer(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual connection around both."""

    def __init__(self, config: SensorTransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = SensorAttention(config)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = SensorFeedForward(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> the same shape."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.ffn(self.ffn_norm(hidden))


class SensorTransformer(PreTrainedModel):
    """A classifier of windows (batch, steps, channels)."""

    config_class = SensorTransformerConfig
    main_input_name = "series"
    _no_split_modules: ClassVar[list[str]] = ["SensorLayer"]

    def __init__(self, config: SensorTransformerConfig) -> None:
        super().__init__(config)
        self.embeddings = SensorEmbeddings(config)
        self.layers = nn.ModuleList([SensorLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, series: Tensor) -> SequenceClassifierOutput:
        """``logits`` (batch, labels) of ``series`` (batch, steps, channels), in the sensor's own units."""
        hidden = self.embeddings(series)
        for layer in self.layers:
            hidden = layer(hidden)
        return SequenceClassifierOutput(logits=self.classifier(self.norm(hidden)[:, 0]))

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise parameters that a checkpoint lacks: normal with a small deviation, as BERT's."""
        super()._init_weights(module)
        if isinstance(module, SensorEmbeddings):
            initialization.normal_(module.positions, std=self.config.initializer_range)
            initialization.normal_(module.class_token, std=self.config.initializer_range)
            initialization.zeros_(module.mean)
            initialization.ones_(module.scale)
