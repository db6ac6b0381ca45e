"""Prepares tracing for the templates: a model of one layer per stack, with sizes that cannot be confused.

Tracing takes equal sizes for the same size, so every size that may differ at run time has a number of its own here.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import cast

import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from coordinator.models.foundation import Foundation
from coordinator.models.recording import FreeSize, FreeSizes
from coordinator.models.templates import AUX, HIDDEN_IN, TARGET_TOKENS, TOKENS
from edge_sdk.elastic.families import Axis, Stack, Unit
from edge_sdk.elastic.submodel import Architecture, ModelTask
from edge_sdk.errors import UnsupportedArchitectureError
from edge_sdk.modules.building import bare_module, parameter_name
from edge_sdk.protocol.graphs import INPUTS, TEXT_TASKS

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerCall:
    """How the model calls its layers: the flattened arguments of one call, and what puts them together again."""

    leaves: list[object]
    structure: pytree.TreeSpec

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The arguments that are tensors: hidden states first, then the mask and what else there is."""
        return _tensors(self.leaves)

    @property
    def names(self) -> list[str]:
        """The tensors' names in the templates."""
        return [HIDDEN_IN, *(f"{AUX}{index}" for index in range(1, len(self.tensors)))]

    @property
    def differentiable(self) -> list[str]:
        """The names of the tensors that depend on parameters: the hidden states, and of the others, if any, which."""
        return [name for name, tensor in zip(self.names, self.tensors, strict=True) if tensor.requires_grad]

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> tuple[tuple[object, ...], dict[str, object]]:
        """The arguments of the same call with other tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


class LayerStub(nn.Module):
    """Stands in for a stack's layers: records how the first is called, returns what the last has returned.

    Without ``hidden_out``, that is what entered the first.
    """

    hidden_out: torch.Tensor | None = None
    call: LayerCall

    def forward(self, *args: object, **kwargs: object) -> object:
        """Take any layer's arguments."""
        self.call = LayerCall(*pytree.tree_flatten((args, kwargs)))
        return self.call.tensors[0] if self.hidden_out is None else self.hidden_out


class BiasStub(LayerStub):
    """Does besides what T5's first layer does for all: it makes the position bias, by the module at ``path`` in it."""

    def __init__(self, layer: nn.Module, path: str) -> None:
        super().__init__()
        *containers, last = path.split(".")
        owner = layer.get_submodule(".".join(containers))
        for child in [child for child, _ in owner.named_children() if child != last]:
            delattr(owner, child)
        self._make_bias = owner.compute_bias
        for name in reversed(containers[1:]):  # the parameter keeps its name
            container = nn.Module()
            container.add_module(name, owner)
            owner = container
        self.add_module(containers[0], owner)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Take the arguments of T5's layer, of which the third is no bias yet; return what that does."""
        hidden, mask, _, *rest = args
        length = cast("torch.Tensor", hidden).shape[1]
        bias = self._make_bias(length, length)
        return super().forward(hidden, mask, bias, *rest, **kwargs), bias, None


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The size of everything that is free, while it is traced.

    ``heads``, of each stack, and ``ffn`` are widths, ``rank`` adapters'; ``targets`` are a decoder's tokens.
    """

    heads: tuple[int, ...]
    ffn: int
    rank: int
    batch: int
    tokens: int
    targets: int

    @classmethod
    def apart_from(cls, fixed: set[int], architecture: Architecture) -> _Sizes:
        """Sizes that differ from one another and from all that are ``fixed``."""
        taken, heads = fixed, list[int]()
        for _ in architecture.stacks:
            sizes = ({_axis_size(axis, count, architecture) for axis in _HEAD_AXES} for count in range(2, 4096))
            own = next(own for own in sizes if taken.isdisjoint(own))
            taken = taken | own
            heads.append(min(own))
        return cls(tuple(heads), *itertools.islice((size for size in itertools.count(4) if size not in taken), 5))

    def of(self, axis: Axis, stack: int, architecture: Architecture) -> int:
        """The size of an elastic axis of a parameter of ``stack``."""
        units = {Unit.HEADS: self.heads[stack], Unit.FFN: self.ffn, Unit.RANK: self.rank}[axis.unit]
        return _axis_size(axis, units, architecture)

    def free(self, architecture: Architecture) -> FreeSizes:
        """What each free size stands for."""
        least_tokens = 3
        most = {"ffn": 1 << 20, "rank": 4096, "batch": 4096}
        free = {getattr(self, name): FreeSize(name, getattr(self, name), most=most[name]) for name in most}
        for stack, heads in enumerate(self.heads):
            for axis in _HEAD_AXES:
                entries = _axis_size(axis, 1, architecture)
                free[entries * heads] = FreeSize(f"heads{stack}", heads, entries)
        if architecture.task in TEXT_TASKS:
            for name, tokens in ((TOKENS, self.tokens), (TARGET_TOKENS, self.targets)):
                free[tokens] = FreeSize(name, tokens, least=least_tokens, most=architecture.positions)
        return free


_HEAD_AXES = (Axis.HEADS, Axis.QUERIES, Axis.KEYS, Axis.FUSED)


class Trace:
    """A model of one layer a stack and a batch for tracing, in which no two sizes that differ in meaning are equal.

    ``layers`` are cut out: in the ``module``, ``stubs`` stand in their places. ``calls`` are how it calls them.
    Raises ``UnsupportedArchitectureError`` for layers of a stack that differ in kind.
    """

    def __init__(self, foundation: Foundation) -> None:
        kinds = set(json.loads(foundation.config_json).get("layer_types") or ())
        if len(kinds) > 1:
            raise UnsupportedArchitectureError(
                f"layers are of different kinds ({', '.join(sorted(kinds))}), and one graph has to serve them all; "
                "use a model of one kind"
            )
        self.architecture, self.family = foundation.architecture, foundation.family
        firsts = tuple(stack.start for stack in self.architecture.stacks)
        self.module = bare_module(foundation.config_json, self.architecture, firsts).requires_grad_(False)
        self._sizes = _Sizes.apart_from(_fixed_sizes(self.module, self.architecture), self.architecture)
        self._free = self._sizes.free(self.architecture)
        self._own_names: dict[str, str] = {}
        self.batch = _batch(self._sizes, foundation)
        self.layers = [copy.deepcopy(self.module.get_submodule(prefix.rstrip("."))) for prefix in self._prefixes]
        self.stubs = [
            self._stub_of(stack, prefix) for stack, prefix in zip(self.family.stacks, self._prefixes, strict=True)
        ]
        self.calls = self._record()

    def layer_parameters(self, stack: int) -> Tensors:
        """Random parameters of the layer of ``stack`` to trace with, named relative to it."""
        return self._parameters(self.layers[stack], self._prefixes[stack])

    def shell_parameters(self) -> Tensors:
        """Random parameters of what lies around the layers."""
        return self._parameters(self.module, "")

    def own_names(self, parameters: Tensors) -> Tensors:
        """The same under the names that the modules themselves have, which PEFT changes."""
        return {self._own_names[name]: value for name, value in parameters.items()}

    def free_sizes(self, tensor: torch.Tensor) -> FreeSizes:
        """The free axes of an input."""
        return {axis: self._free[size] for axis, size in enumerate(tensor.shape) if size in self._free}

    @property
    def _prefixes(self) -> list[str]:
        """What the parameters of each stack's only layer begin with."""
        return [stack.layer.format(0) for stack in self.family.stacks]

    def _stub_of(self, stack: Stack, prefix: str) -> LayerStub:
        """The stub, put in the place of the list of the stack's layers."""
        layer = self.module.get_submodule(prefix.rstrip("."))
        stub = BiasStub(layer, stack.position_bias) if stack.position_bias else LayerStub()
        owner, _, name = prefix.removesuffix(".0.").rpartition(".")
        setattr(self.module.get_submodule(owner), name, nn.ModuleList([stub]))
        return stub

    def _record(self) -> list[LayerCall]:
        """Run the model once, at the widths that are traced."""
        inputs = dict(zip(INPUTS[self.architecture.task], self.batch, strict=False))
        functional_call(self.module, self.own_names(self.shell_parameters()), (), inputs)
        return [stub.call for stub in self.stubs]

    def _parameters(self, module: nn.Module, prefix: str) -> Tensors:
        """Random parameters, with a size of its own for every elastic axis."""
        parameters = {}
        for own, value in module.named_parameters():
            name = parameter_name(own)
            if prefix and self.family.layer_index(prefix + name, self.architecture) is None:
                continue  # a position bias, which is the shell's
            self._own_names[name] = own
            axes = self.family.axes(prefix + name) or (None,) * value.dim()
            stack = self.family.stack_index(prefix + name) or 0
            shape = [
                size if axis is None else self._sizes.of(axis, stack, self.architecture)
                for axis, size in zip(axes, value.shape, strict=True)
            ]
            parameters[name] = torch.randn(shape).requires_grad_(True)
        return parameters


def _tensors(leaves: Iterable[object]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _axis_size(axis: Axis, units: int, architecture: Architecture) -> int:
    return units * axis.entries(architecture) * axis.blocks


def _fixed_sizes(module: nn.Module, architecture: Architecture) -> set[int]:
    """Every size in the model and of the architecture."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    numbers = {value for value in (*astuple(architecture), *architecture.input_shape) if isinstance(value, int)}
    return numbers | {size for tensor in tensors for size in tensor.shape}


def _batch(sizes: _Sizes, foundation: Foundation) -> tuple[torch.Tensor, ...]:
    """The inputs of a training graph beside parameters, in order."""
    architecture = foundation.architecture
    labels, offset = architecture.labels, torch.zeros(architecture.labels)
    if architecture.task is ModelTask.TEXT_GENERATION:
        return *_texts(sizes), torch.zeros(sizes.batch, sizes.tokens, dtype=torch.int64)
    if architecture.task is ModelTask.TEXT2TEXT_GENERATION:
        written = torch.full((sizes.batch, sizes.targets), 2)
        return *_texts(sizes), written, torch.zeros_like(written)
    if architecture.task is ModelTask.TOKEN_CLASSIFICATION:
        return *_texts(sizes), torch.ones(sizes.batch, sizes.tokens, labels), offset
    inputs = _texts(sizes) if architecture.task in TEXT_TASKS else (torch.zeros(sizes.batch, *foundation.input_shape),)
    return *inputs, torch.ones(sizes.batch, labels), offset


def _texts(sizes: _Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(sizes.batch, sizes.tokens, dtype=torch.int64)
    mask[0, 1:] = 0  # transformers drops a mask without padding, and with it an input of the layer
    return torch.full_like(mask, 2), mask
