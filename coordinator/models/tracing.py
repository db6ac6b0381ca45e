"""What is traced for the templates: a model of one layer, sizes that cannot be mistaken for each other, and the cut.

Tracing takes equal sizes for the same size, so every size that may differ at run time has a number of its own here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from coordinator.models.foundation import Foundation
from coordinator.models.joint_export import Dims
from coordinator.models.templates import AUX, HIDDEN_IN
from edge_sdk.elastic.families import Axis, Unit
from edge_sdk.elastic.submodel import Architecture, ModelTask
from edge_sdk.errors import UnsupportedArchitectureError
from edge_sdk.modules.building import bare_module, parameter_name
from edge_sdk.protocol.graphs import INPUTS, TEXT_TASKS

Tensors = dict[str, torch.Tensor]


class LayerStub(nn.Module):
    """Stands in for all the layers: records what the first is called with, returns what the last has returned."""

    hidden_out: torch.Tensor
    seen: list[torch.Tensor]

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Take any layer's arguments."""
        self.seen = _tensors(pytree.tree_leaves((args, kwargs)))
        return self.hidden_out


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

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> tuple[tuple[object, ...], dict[str, object]]:
        """The arguments of the same call with other tensors."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The size of everything that is free, while it is traced; ``heads`` and ``ffn`` are widths, ``rank`` adapters'."""

    heads: int
    ffn: int
    rank: int
    batch: int
    tokens: int

    @classmethod
    def apart_from(cls, fixed: set[int], architecture: Architecture) -> _Sizes:
        """Numbers that are not ``fixed``, of which no axis has the same."""
        heads = next(
            count
            for count in itertools.count(2)
            if fixed.isdisjoint({count, *(_axis_size(axis, count, architecture) for axis in _HEAD_AXES)})
        )
        taken = fixed | {heads, *(_axis_size(axis, heads, architecture) for axis in _HEAD_AXES)}
        return cls(heads, *itertools.islice((size for size in itertools.count(4) if size not in taken), 4))

    def of(self, axis: Axis, architecture: Architecture) -> int:
        """The size of an elastic axis of a parameter."""
        units = {Unit.HEADS: self.heads, Unit.FFN: self.ffn, Unit.RANK: self.rank}[axis.unit]
        return _axis_size(axis, units, architecture)

    def free(self, architecture: Architecture) -> Dims:
        """The dynamic dimension that each size stands for."""
        heads, least_tokens = Dim("heads", min=1, max=4096), 3
        names = {"ffn": 1 << 20, "rank": 4096, "batch": 4096}
        free = {getattr(self, name): Dim(name, min=1, max=most) for name, most in names.items()}
        for axis in _HEAD_AXES:
            entries = _axis_size(axis, 1, architecture)
            free[self.of(axis, architecture)] = entries * heads if entries > 1 else heads
        if architecture.task in TEXT_TASKS:
            free[self.tokens] = Dim("tokens", min=least_tokens, max=architecture.positions)
        return free


_HEAD_AXES = (Axis.QUERIES, Axis.KEYS, Axis.FUSED)


class Trace:
    """A one-layer model and a batch for tracing, in which no two sizes that differ in meaning are equal.

    Raises ``UnsupportedArchitectureError`` for an encoder-decoder, whose stacks cannot be cut at one place, and for
    layers that differ in kind.
    """

    def __init__(self, foundation: Foundation) -> None:
        self.architecture = foundation.architecture
        if self.architecture.encoder_layers:
            raise UnsupportedArchitectureError(
                f"{self.architecture.family} has an encoder and a decoder, for which no training graph is compiled; "
                "train it on the torch runtime"
            )
        kinds = set(json.loads(foundation.config_json).get("layer_types") or ())
        if len(kinds) > 1:
            raise UnsupportedArchitectureError(
                f"layers are of different kinds ({', '.join(sorted(kinds))}), and one graph has to serve them all; "
                "use a model of one kind"
            )
        self.family = foundation.family
        self.module = bare_module(foundation.config_json, self.architecture, (0,)).requires_grad_(False)
        self._prefix = self.family.layer_prefix(0, self.architecture)
        self._sizes = _Sizes.apart_from(_fixed_sizes(self.module, self.architecture), self.architecture)
        self._free = self._sizes.free(self.architecture)
        self._own_names: dict[str, str] = {}
        self.batch = _batch(self._sizes, foundation)

    @property
    def layer(self) -> nn.Module:
        """The model's only layer."""
        return self.module.get_submodule(self._prefix.rstrip("."))

    def layer_call(self) -> LayerCall:
        """Run the model once and record how it calls its layer."""
        calls: list[LayerCall] = []
        record = self.layer.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(LayerCall(*pytree.tree_flatten((args, kwargs)))), with_kwargs=True
        )
        names = INPUTS[self.architecture.task]
        with torch.no_grad(), record:
            self.module(**dict(zip(names, self.batch, strict=False)))
        return calls[0]

    def replace_layers(self, stub: nn.Module) -> None:
        """Put ``stub`` in the place of the list of layers."""
        owner, _, name = self._prefix.split(".0.")[0].rpartition(".")
        setattr(self.module.get_submodule(owner), name, nn.ModuleList([stub]))

    def layer_parameters(self) -> Tensors:
        """Random parameters of the layer to trace with, named relative to it."""
        return self._parameters(self.layer, self._prefix)

    def shell_parameters(self) -> Tensors:
        """Random parameters of what lies around the layers."""
        return self._parameters(self.module, "")

    def own_names(self, parameters: Tensors) -> Tensors:
        """The same under the names that the modules themselves have, which PEFT changes."""
        return {self._own_names[name]: value for name, value in parameters.items()}

    def _parameters(self, module: nn.Module, prefix: str) -> Tensors:
        """Of a size of its own along every elastic axis."""
        parameters = {}
        for own, value in module.named_parameters():
            name = parameter_name(own)
            self._own_names[name] = own
            axes = self.family.axes(prefix + name) or (None,) * value.dim()
            shape = [
                size if axis is None else self._sizes.of(axis, self.architecture)
                for axis, size in zip(axes, value.shape, strict=True)
            ]
            parameters[name] = torch.randn(shape).requires_grad_(True)
        return parameters

    def dims(self, tensor: torch.Tensor) -> Dims:
        """The free axes of an input."""
        return {axis: self._free[size] for axis, size in enumerate(tensor.shape) if size in self._free}


def _tensors(leaves: Iterable[object]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _axis_size(axis: Axis, units: int, architecture: Architecture) -> int:
    return units * axis.entries(architecture) * axis.blocks


def _fixed_sizes(module: nn.Module, architecture: Architecture) -> set[int]:
    """Every size in the model and of the architecture."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    numbers = {value for value in astuple(architecture) if isinstance(value, int)}
    return numbers | {size for tensor in tensors for size in tensor.shape}


def _batch(sizes: _Sizes, foundation: Foundation) -> tuple[torch.Tensor, ...]:
    """The inputs of a training graph beside parameters, in order."""
    architecture = foundation.architecture
    labels, offset = architecture.labels, torch.zeros(architecture.labels)
    if architecture.task is ModelTask.TEXT_GENERATION:
        return *_texts(sizes), torch.zeros(sizes.batch, sizes.tokens, dtype=torch.int64)
    if architecture.task is ModelTask.TOKEN_CLASSIFICATION:
        return *_texts(sizes), torch.ones(sizes.batch, sizes.tokens, labels), offset
    inputs = _texts(sizes) if architecture.task in TEXT_TASKS else (torch.zeros(sizes.batch, *foundation.input_shape),)
    return *inputs, torch.ones(sizes.batch, labels), offset


def _texts(sizes: _Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(sizes.batch, sizes.tokens, dtype=torch.int64)
    mask[0, 1:] = 0  # transformers drops a mask without padding, and with it an input of the layer
    return torch.full_like(mask, 2), mask
