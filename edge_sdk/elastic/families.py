"""Where each architecture keeps its elastic units: one declarative row per family.

A row names module paths inside a layer, relative to the layer, as in Hugging Face's state dict. To add an architecture,
add a row, as the README beside this file explains; an architecture without a row is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from edge_sdk.elastic.submodel import Architecture, Role, TrainablePart
from edge_sdk.errors import UnsupportedArchitectureError


class Unit(str, Enum):
    """What a submodel counts."""

    HEADS = "heads"
    FFN = "ffn"
    RANK = "rank"


class Axis(Enum):
    """An elastic axis of a parameter: the unit that it counts, and how its entries are laid out.

    ``FUSED`` holds q, k and v one after the other; each of the three blocks is cut by itself.
    """

    QUERIES = "queries"
    KEYS = "keys"
    FUSED = "fused"
    HEADS = "heads"
    FFN = "ffn"
    RANK = "rank"

    @property
    def unit(self) -> Unit:
        """The unit that this axis counts."""
        return {Axis.FFN: Unit.FFN, Axis.RANK: Unit.RANK}.get(self, Unit.HEADS)

    @property
    def blocks(self) -> int:
        """How many blocks there are along the axis, each with entries for all units."""
        return 3 if self is Axis.FUSED else 1

    def entries(self, architecture: Architecture) -> int:
        """The number of consecutive entries that one unit has in a block."""
        if self is Axis.QUERIES:
            return architecture.group_size * architecture.head_size
        return architecture.head_size if self in {Axis.KEYS, Axis.FUSED} else 1

    def size(self, architecture: Architecture) -> int:
        """The length of the axis in the full model."""
        units = {Unit.FFN: architecture.ffn, Unit.RANK: architecture.adapter_rank}.get(self.unit, architecture.heads)
        return self.blocks * units * self.entries(architecture)


Axes = tuple[Axis | None, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """The modules of one attention block in a layer; ``q``, ``k`` and ``v`` are equal if one fused module is all."""

    q: str
    k: str
    v: str
    o: str


@dataclass(frozen=True, slots=True)
class Stack:
    """A sequence of equal layers. ``layer`` is the prefix of layer ``{}``; ``up`` includes a gate if there is one.

    ``position_bias`` is a module of layer 0 with one column per head, which every layer of the stack reads.
    ``widths`` are attributes of modules that Hugging Face sets once from the configuration and that must follow the
    width; each counts the entries of one block of its axis.
    """

    layer: str
    attentions: tuple[Attention, ...]
    up: tuple[str, ...]
    down: str
    position_bias: str = ""
    widths: tuple[tuple[str, Axis], ...] = ()

    def modules(self, role: Role) -> tuple[str, ...]:
        """The modules of a layer with this ``role``; a model of the family need not have all of them."""
        if role is Role.UP:
            return self.up
        return (self.down,) if role is Role.DOWN else tuple(getattr(block, role.value) for block in self.attentions)

    @property
    def outputs(self) -> dict[str, Axis]:
        """The elastic axis of each module's outputs, by module."""
        axes = dict.fromkeys(self.up, Axis.FFN)
        for attention in self.attentions:
            if attention.q == attention.k:
                axes[attention.q] = Axis.FUSED
            else:
                axes |= {attention.q: Axis.QUERIES, attention.k: Axis.KEYS, attention.v: Axis.KEYS}
        return axes

    @property
    def inputs(self) -> dict[str, Axis]:
        """The elastic axis of each module's inputs, by module."""
        return {self.down: Axis.FFN, **{attention.o: Axis.QUERIES for attention in self.attentions}}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture's parameter names.

    ``stacks`` is one stack, or encoder and decoder. ``embeddings`` are the prefixes of the parameters that the
    trainable part "no-embeddings" leaves frozen, ``head`` those of the task head, and ``frozen`` those of parameters
    that no device ever trains. A weight has the shape (out, in), or (in, out) if ``is_transposed``.
    """

    name: str
    stacks: tuple[Stack, ...]
    embeddings: tuple[str, ...]
    head: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    is_transposed: bool = False
    _elastic: tuple[tuple[dict[str, Axis], dict[str, Axis]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compute the tables of elastic modules once, since :meth:`axes` runs for every parameter of every submodel."""
        object.__setattr__(self, "_elastic", tuple((stack.outputs, stack.inputs) for stack in self.stacks))

    def layer_prefix(self, layer: int, architecture: Architecture) -> str:
        """The prefix of the parameters of ``layer``, counted over all stacks. Raises ``IndexError``."""
        for stack, layers in zip(self.stacks, architecture.stacks, strict=True):
            if layer in layers:
                return stack.layer.format(layer - layers.start)
        raise IndexError(layer)

    def layer_index(self, parameter: str, architecture: Architecture) -> int | None:
        """The layer that ``parameter`` belongs to, counted over all stacks; ``None`` if it is outside of all layers."""
        if (place := self._place(parameter)) is None:
            return None
        number, index, _ = place
        return architecture.stacks[number].start + index

    def stack_index(self, parameter: str) -> int | None:
        """The stack that ``parameter`` belongs to, by a layer or by the position bias; else ``None``."""
        for number, stack in enumerate(self.stacks):
            if parameter.startswith(stack.layer.split("{}")[0]):
                return number
        return None

    def axes(self, parameter: str) -> Axes:
        """For each axis of ``parameter``, its elastic axis or ``None``; an empty tuple if none is elastic."""
        if (place := self._place(parameter)) is None:
            return (None, Axis.HEADS) if self._is_position_bias(parameter) else ()
        number, _, name = place
        module, _, kind = name.partition(".lora_") if ".lora_" in name else name.rpartition(".")
        outputs, inputs = self._elastic[number]
        axes = _axes_of(kind, outputs.get(module), inputs.get(module), is_transposed=self.is_transposed)
        return axes if any(axes) else ()

    def is_trainable(self, parameter: str, part: TrainablePart) -> bool:
        """Whether a device that trains ``part`` trains ``parameter``."""
        if parameter.startswith(self.frozen):
            return False
        is_head = parameter.startswith(self.head)
        if part is TrainablePart.HEAD:
            return is_head
        if part is TrainablePart.ADAPTERS:
            return is_head or is_adapter(parameter)
        is_embedding = parameter.startswith(self.embeddings) or self._is_position_bias(parameter)
        return part is TrainablePart.ALL or not is_embedding

    def _place(self, parameter: str) -> tuple[int, int, str] | None:
        """The stack's number, the layer in that stack, and the parameter's name in that layer."""
        number = self.stack_index(parameter)
        if number is None or self._is_position_bias(parameter):
            return None
        index, name = parameter[len(self.stacks[number].layer.split("{}")[0]) :].split(".", 1)
        return number, int(index), name

    def _is_position_bias(self, parameter: str) -> bool:
        return any(
            stack.position_bias and parameter == f"{stack.layer.format(0)}{stack.position_bias}.weight"
            for stack in self.stacks
        )


def is_adapter(parameter: str) -> bool:
    """Whether ``parameter`` was added by PEFT: LoRA's factors, DoRA's magnitudes, IA3's scales."""
    return ".lora_" in parameter or parameter.endswith(".ia3_l")


def _axes_of(kind: str, output: Axis | None, inputs: Axis | None, *, is_transposed: bool) -> Axes:
    """The axes of one parameter of a linear module; PEFT lays out LoRA's the same way for every module."""
    if kind == "weight":
        return (inputs, output) if is_transposed else (output, inputs)
    if kind == "A.weight":  # (rank, in)
        return Axis.RANK, inputs
    if kind == "B.weight":  # (out, rank)
        return output, Axis.RANK
    if kind == "ia3_l":  # (1, in) where the inputs are scaled, (out, 1) where the outputs are
        return (None, inputs) if inputs is Axis.FFN else (output, None)
    return (output,)


def _bert_like(name: str, head: tuple[str, ...] = ("classifier.",)) -> Family:
    """BERT and families with its module names below a prefix of their own."""
    stack = Stack(
        layer=f"{name}.encoder.layer.{{}}.",
        attentions=(
            Attention("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        ),
        up=("intermediate.dense",),
        down="output.dense",
    )
    return Family(name, (stack,), embeddings=(f"{name}.embeddings",), head=head)


def _vit_like(name: str) -> Family:
    """ViT and families that only add tokens to it."""
    stack = Stack(
        layer=f"{name}.layers.{{}}.",
        attentions=(Attention("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),),
        up=("mlp.fc1",),
        down="mlp.fc2",
    )
    return Family(name, (stack,), embeddings=(f"{name}.embeddings",), head=("classifier.",))


def _llama_like(name: str) -> Family:
    """Llama and families with its module names."""
    stack = Stack(
        layer="model.layers.{}.",
        attentions=(Attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),),
        up=("mlp.gate_proj", "mlp.up_proj"),
        down="mlp.down_proj",
    )
    return Family(name, (stack,), embeddings=("model.embed_tokens.",), head=("lm_head.", "score."))


def _t5_stack(name: str, attentions: tuple[str, ...]) -> Stack:
    last = f"layer.{len(attentions)}.DenseReluDense"
    return Stack(
        layer=f"{name}.block.{{}}.",
        attentions=tuple(Attention(f"{path}.q", f"{path}.k", f"{path}.v", f"{path}.o") for path in attentions),
        up=(f"{last}.wi", f"{last}.wi_0", f"{last}.wi_1"),
        down=f"{last}.wo",
        position_bias="layer.0.SelfAttention.relative_attention_bias",
        widths=tuple((f"{path}.n_heads", Axis.HEADS) for path in attentions),
    )


_GPT2 = Stack(
    layer="transformer.h.{}.",
    attentions=(Attention("attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj"),),
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    widths=(("attn.split_size", Axis.FUSED),),
)
_DISTILBERT = Stack(
    layer="distilbert.transformer.layer.{}.",
    attentions=(Attention("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),),
    up=("ffn.lin1",),
    down="ffn.lin2",
)
_SENSOR = Stack(
    layer="layers.{}.",
    attentions=(Attention("attention.q", "attention.k", "attention.v", "attention.o"),),
    up=("ffn.up",),
    down="ffn.down",
)
_TABLE = {
    family.name: family
    for family in (
        _bert_like("bert", head=("bert.pooler.", "classifier.")),
        _bert_like("roberta"),
        _bert_like("electra"),
        Family("distilbert", (_DISTILBERT,), ("distilbert.embeddings",), ("pre_classifier.", "classifier.")),
        _vit_like("vit"),
        _vit_like("deit"),
        Family(
            "gpt2",
            (_GPT2,),
            ("transformer.wte.", "transformer.wpe."),
            head=("lm_head.", "score.", "classifier."),
            is_transposed=True,
        ),
        _llama_like("llama"),
        _llama_like("mistral"),
        _llama_like("qwen2"),
        _llama_like("qwen3"),
        Family(
            "t5",
            (
                _t5_stack("encoder", ("layer.0.SelfAttention",)),
                _t5_stack("decoder", ("layer.0.SelfAttention", "layer.1.EncDecAttention")),
            ),
            embeddings=("shared.",),
            head=("lm_head.",),
        ),
        Family(
            "sensor-transformer",
            (_SENSOR,),
            ("embeddings.",),
            ("classifier.",),
            frozen=("embeddings.mean", "embeddings.scale"),
        ),
    )
}


def register_family(family: Family) -> None:
    """Add a row for ``family.name``, a Hugging Face ``model_type``; replaces an existing row of that name."""
    _TABLE[family.name] = family


def family_names() -> tuple[str, ...]:
    """The ``model_type`` of every row."""
    return tuple(sorted(_TABLE))


def family_of(model_type: str) -> Family:
    """The row of a Hugging Face ``model_type``; ``UnsupportedArchitectureError`` if there is none."""
    if model_type not in _TABLE:
        msg = (
            f"architecture {model_type!r} is not supported: its parameter names are unknown; "
            f"use one of {', '.join(family_names())}, or add a row to edge_sdk/elastic/families.py"
        )
        raise UnsupportedArchitectureError(msg)
    return _TABLE[model_type]
