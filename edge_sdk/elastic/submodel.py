"""A submodel as pure data: which layers, and how many heads and FFN neurons of each.

The foundation model is permuted by salience once, so that the most salient units of a layer come first. A submodel is
then a *prefix* of every layer that it keeps: counts describe it, without index lists (RaFFM, arXiv 2310.00247,
section 3). A rolling window (FedRolex, arXiv 2212.01548) is the same with an offset, from which units are counted,
wrapping around at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import msgspec

from edge_sdk.errors import ConfigurationError


class ModelTask(str, Enum):
    """What a model's head is for, by Hugging Face's names of tasks."""

    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - a token is a word here
    IMAGE_CLASSIFICATION = "image-classification"
    TEXT_GENERATION = "text-generation"
    TEXT2TEXT_GENERATION = "text2text-generation"
    TIME_SERIES_CLASSIFICATION = "time-series-classification"

    @property
    def generates(self) -> bool:
        """Whether the model writes text: there are no labels, but a logit for each token of the vocabulary."""
        return self in {ModelTask.TEXT_GENERATION, ModelTask.TEXT2TEXT_GENERATION}


class TrainablePart(str, Enum):
    """Which parameters of a submodel a device trains; the others stay frozen and are fetched once."""

    ALL = "all"
    NO_EMBEDDINGS = "no-embeddings"
    ADAPTERS = "adapters"
    HEAD = "head"


class AdapterMethod(str, Enum):
    """How adapters work, by PEFT's names."""

    LORA = "lora"
    DORA = "dora"
    IA3 = "ia3"

    @property
    def has_graph(self) -> bool:
        """Whether graphs can be compiled with it. Other methods train on torch only, and serve merged into weights."""
        return self is AdapterMethod.LORA


class Role(str, Enum):
    """What a linear module of a layer does; a gate counts as ``UP``."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the field's name for it
    UP = "up"
    DOWN = "down"


_TARGETS = {AdapterMethod.IA3: (Role.K, Role.V, Role.DOWN)}


@dataclass(frozen=True, slots=True)
class Adapters:
    """What is added to the frozen modules ``targets`` and trained, with LoRA's names for the sizes.

        LoRA   y = (W + scale · B·A) x                              arXiv 2106.09685, section 4.1
        DoRA   y = m ⊙ (W + scale · B·A) x / ‖W + scale · B·A‖      arXiv 2402.09353, equation 5; norms of rows
        IA3    y = l ⊙ Wx, in an FFN's second module W(l ⊙ x)       arXiv 2205.05638, section 3.3

    ``rank`` is the global adapters' rank, of which a submodel may take a prefix; ``scale`` is PEFT's lora_alpha / r,
    and stays the same whatever the rank. IA3 has neither.
    """

    rank: int = 8
    scale: float = 2.0
    targets: tuple[Role, ...] = (Role.Q, Role.V)
    method: AdapterMethod = AdapterMethod.LORA

    @classmethod
    def of(cls, method: AdapterMethod, rank: int) -> Adapters:
        """Adapters of ``method`` on its usual targets: q and v, for IA3 k, v and the FFN's second module."""
        return cls(rank=rank, targets=_TARGETS.get(method, (Role.Q, Role.V)), method=method)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a transformer, as read from its configuration once.

    ``heads`` counts key-value heads, each with ``group_size`` query heads (1 in multi-head attention). ``head_size``
    never changes with the width, since it fixes the softmax scale 1/sqrt(head_size). ``positions`` is the longest input
    in tokens. ``layers`` counts those of all stacks; the first ``encoder_layers`` are the encoder of an
    encoder-decoder, 0 elsewhere. ``input_shape`` is that of one image (channels, height, width) or window (steps,
    channels), empty for texts, which may have any length.
    """

    family: Annotated[str, msgspec.Meta(max_length=500)]
    layers: int
    heads: int
    head_size: int
    ffn: int
    hidden: int
    vocabulary: int
    positions: int
    labels: int
    group_size: int = 1
    encoder_layers: int = 0
    task: ModelTask = ModelTask.TEXT_CLASSIFICATION
    adapters: Adapters | None = None
    input_shape: tuple[int, ...] = ()

    @property
    def adapter_rank(self) -> int:
        """The rank of the global adapters, 0 if there are none or they have no rank."""
        return 0 if self.adapters is None or self.adapters.method is AdapterMethod.IA3 else self.adapters.rank

    @property
    def has_graph(self) -> bool:
        """Whether graphs can be compiled with all of its parameters, see :attr:`AdapterMethod.has_graph`."""
        return self.adapters is None or self.adapters.method.has_graph

    @property
    def stacks(self) -> tuple[range, ...]:
        """The layers of each stack: one, or encoder and decoder."""
        if not self.encoder_layers:
            return (range(self.layers),)
        return range(self.encoder_layers), range(self.encoder_layers, self.layers)


@dataclass(frozen=True, slots=True)
class Submodel:
    """The part of a model that one device trains or runs.

    ``layers`` are the kept layers' indices in the full model, ascending; ``heads[i]`` and ``ffn[i]`` are how many heads
    and FFN neurons layer ``layers[i]`` keeps. Both start at ``first_head`` and ``first_neuron``, by default 0, and wrap
    around at the end. ``adapter_rank`` is the rank of its LoRA or DoRA adapters.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    adapter_rank: int = 0
    first_head: int = 0
    first_neuron: int = 0

    def check(self, architecture: Architecture) -> None:
        """Raise ``ConfigurationError`` if this exceeds ``architecture``, or is empty."""
        if not len(self.layers) == len(self.heads) == len(self.ffn) > 0:
            msg = f"submodel needs one head count and one FFN width per kept layer, got {self}"
            raise ConfigurationError(msg)
        if (
            list(self.layers) != sorted(set(self.layers))
            or not 0 <= self.layers[0] <= self.layers[-1] < architecture.layers
        ):
            msg = f"submodel layers {self.layers} must rise within 0..{architecture.layers - 1}"
            raise ConfigurationError(msg)
        for unit, counts, most in (
            ("heads", self.heads, architecture.heads),
            ("FFN neurons", self.ffn, architecture.ffn),
        ):
            if not all(1 <= count <= most for count in counts):
                msg = f"submodel asks for {counts} {unit} a layer; the model has 1..{most}"
                raise ConfigurationError(msg)
        self._check_window(architecture)
        self._check_stacks(architecture)

    def _check_window(self, architecture: Architecture) -> None:
        rank = architecture.adapter_rank
        if not min(1, rank) <= self.adapter_rank <= rank:
            msg = f"submodel asks for adapter rank {self.adapter_rank}; the model has {min(1, rank)}..{rank}"
            raise ConfigurationError(msg)
        if not (0 <= self.first_head < architecture.heads and 0 <= self.first_neuron < architecture.ffn):
            msg = (
                f"submodel starts at head {self.first_head} and neuron {self.first_neuron}; "
                f"the model has {architecture.heads} heads and {architecture.ffn} neurons, counted from 0"
            )
            raise ConfigurationError(msg)

    def _check_stacks(self, architecture: Architecture) -> None:
        """An encoder-decoder needs layers in both stacks, and one head count in each: position biases are shared."""
        if not architecture.encoder_layers:
            return
        for stack in architecture.stacks:
            widths = {heads for layer, heads in zip(self.layers, self.heads, strict=True) if layer in stack}
            if len(widths) != 1:
                msg = (
                    f"submodel has {sorted(widths)} heads in layers {stack.start}..{stack.stop - 1}; "
                    "an encoder-decoder needs one number of heads for each of its two stacks"
                )
                raise ConfigurationError(msg)

    @property
    def width(self) -> str:
        """Its size in words: heads and FFN neurons of its layers, or their ranges; layers; rank."""
        rank = f", rank {self.adapter_rank}" if self.adapter_rank else ""
        return f"{_span(self.heads)} heads, {_span(self.ffn)} FFN, {len(self.layers)} layers{rank}"


def full(architecture: Architecture) -> Submodel:
    """The submodel that is the whole model."""
    return uniform(architecture, architecture.heads)


def uniform(architecture: Architecture, heads: int) -> Submodel:
    """Every layer with ``heads`` heads and the same share of the FFN neurons, rounded down, at least one.

    Adapters keep their full rank. Raises ``ConfigurationError`` if there are not so many heads.
    """
    ffn = max(1, architecture.ffn * heads // architecture.heads)
    count = architecture.layers
    submodel = Submodel(tuple(range(count)), (heads,) * count, (ffn,) * count, architecture.adapter_rank)
    submodel.check(architecture)
    return submodel


def _span(counts: tuple[int, ...]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"
