"""Trace a foundation model's layer and shell, with their gradients, into the two templates.

The layers are cut out of the model by a stub that records what enters the first and returns what left the last; the
chain rule closes the cut: the shell's gradients take ``grad.hidden.in`` as the gradient of what the stub recorded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
import torch
from torch import nn
from torch.export import Dim
from torch.func import functional_call
from torch.nn import functional
from torch.utils import _pytree as pytree

from coordinator.models.foundation import Foundation
from coordinator.models.joint_export import Dims, export_function
from coordinator.models.templates import AUX, BATCH_INPUTS, GRAD, HIDDEN_IN, HIDDEN_OUT
from coordinator.models.torch_modules import bare_module
from edge_sdk.elastic.families import Unit
from edge_sdk.errors import ModelFormatError

Tensors = dict[str, torch.Tensor]


def export_layer(foundation: Foundation) -> onnx.ModelProto:
    """The layer template; see :mod:`coordinator.models.templates` for its inputs and outputs."""
    trace = _Trace(foundation)
    call, prefix = trace.layer_call(), foundation.family.layer.format(0)
    layer = trace.module.get_submodule(prefix.rstrip("."))
    parameters = {name: trace.parameter(prefix + name, value) for name, value in layer.named_parameters()}

    def forward_backward(
        parameters: Tensors, tensors: tuple[torch.Tensor, ...], grad_out: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        args, kwargs = call.with_tensors(tensors)
        out = functional_call(layer, parameters, args, kwargs)
        return (out, *gradients_of((out,), {HIDDEN_IN: tensors[0], **parameters}, (grad_out,)))

    tensors = (call.tensors[0].requires_grad_(True), *call.tensors[1:])
    model = export_function(
        forward_backward,
        (parameters, tensors, torch.randn_like(tensors[0])),
        trace.dims,
        inputs=[*parameters, *call.names, GRAD + HIDDEN_OUT],
        outputs=[HIDDEN_OUT, *_gradient_names([HIDDEN_IN, *parameters])],
    )
    return _read_sizes_from(HIDDEN_IN, model)


def export_shell(foundation: Foundation) -> onnx.ModelProto:
    """The shell template; the loss is the mean cross-entropy of logits + logit_offset, the logits are without it."""
    trace = _Trace(foundation)
    call, stub = trace.layer_call(), _Stub()
    trace.replace_layers(stub)
    parameters = {name: trace.parameter(name, value) for name, value in trace.module.named_parameters()}

    def forward_backward(
        parameters: Tensors, batch: tuple[torch.Tensor, ...], hidden_out: torch.Tensor, grad_in: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        input_ids, attention_mask, labels, logit_offset = batch
        stub.hidden_out = hidden_out
        model_inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        logits = functional_call(trace.module, parameters, (), model_inputs).logits
        loss = _cross_entropy(logits + logit_offset, labels)
        hidden_in, *aux = stub.seen
        wanted = {HIDDEN_OUT: hidden_out, **parameters}
        gradients = gradients_of((loss, hidden_in), wanted, (torch.ones_like(loss), grad_in))
        return (loss, logits, hidden_in, *aux, *gradients)

    hidden = call.tensors[0]
    model = export_function(
        forward_backward,
        (parameters, trace.batch, hidden.clone().requires_grad_(True), torch.randn_like(hidden)),
        trace.dims,
        inputs=[*parameters, *BATCH_INPUTS, HIDDEN_OUT, GRAD + HIDDEN_IN],
        outputs=["loss", "logits", *call.names, *_gradient_names([HIDDEN_OUT, *parameters])],
    )
    return _read_sizes_from("input_ids", model)


def gradients_of(
    outputs: tuple[torch.Tensor, ...], wanted: Tensors, grad_outputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """The gradient for each tensor of ``wanted``; ``ModelFormatError`` names one that no output depends on."""
    gradients = torch.autograd.grad(outputs, tuple(wanted.values()), grad_outputs, allow_unused=True)
    for name, gradient in zip(wanted, gradients, strict=True):
        if gradient is None:
            raise ModelFormatError(
                f"{name} does not influence the loss and cannot be trained; remove it from the model"
            )
    return gradients


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, spelt out: torch.onnx loses the division by batch in the gradient of torch's own."""
    return -functional.log_softmax(logits, dim=1).gather(1, labels.unsqueeze(1)).mean()


def _read_sizes_from(source: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """Take batch and length from ``source`` instead of a boundary value that exists only after the layers have run.

    Torch reads a size from whichever tensor has it, so without this the stitched graph would have a cycle.
    """
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in {HIDDEN_OUT, GRAD + HIDDEN_OUT, GRAD + HIDDEN_IN}:
            if not any(attribute.name == "end" and attribute.i <= 2 for attribute in node.attribute):
                raise ModelFormatError(
                    f"{node.name} reads the hidden size from {node.input[0]}; expected batch or length"
                )
            node.input[0] = source
    return model


def _gradient_names(names: Iterable[str]) -> list[str]:
    return [GRAD + name for name in names]


class _Stub(nn.Module):
    """Stands in for all the layers: records what the first is called with, returns what the last has returned."""

    hidden_out: torch.Tensor
    seen: list[torch.Tensor]

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Take any layer's arguments."""
        self.seen = _tensors(pytree.tree_leaves((args, kwargs)))
        return self.hidden_out


@dataclass(frozen=True, slots=True)
class _LayerCall:
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


def _tensors(leaves: Iterable[object]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


class _Trace:
    """A one-layer model and a batch for tracing, in which no two sizes that differ in meaning are equal."""

    def __init__(self, foundation: Foundation) -> None:
        self.family = foundation.family
        self.module = bare_module(foundation, layers=1).requires_grad_(False)
        head_size, positions = foundation.architecture.head_size, foundation.architecture.positions
        fresh = _fresh_sizes(self.module)
        ffn, batch, tokens = itertools.islice(fresh, 3)
        head_rows = next(size for size in fresh if size % head_size == 0 and size > head_size)
        self.widths: dict[Unit | None, int] = {Unit.HEADS: head_rows, Unit.FFN: ffn}
        self.batch = _batch(batch, tokens, foundation.architecture.labels)
        self._free = {
            head_rows: head_size * Dim("heads", min=1, max=4096),
            ffn: Dim("ffn", min=1, max=1 << 20),
            batch: Dim("batch", min=1, max=4096),
            tokens: Dim("tokens", min=2, max=positions),
        }

    def layer_call(self) -> _LayerCall:
        """Run the model once and record how it calls its layer."""
        calls: list[_LayerCall] = []
        layer = self.module.get_submodule(self.family.layer.format(0).rstrip("."))
        record = layer.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(_LayerCall(*pytree.tree_flatten((args, kwargs)))), with_kwargs=True
        )
        with torch.no_grad(), record:
            self.module(input_ids=self.batch[0], attention_mask=self.batch[1])
        return calls[0]

    def replace_layers(self, stub: nn.Module) -> None:
        """Put ``stub`` in the place of the list of layers."""
        owner, name = self.family.layer.split(".{}")[0].rsplit(".", 1)
        setattr(self.module.get_submodule(owner), name, nn.ModuleList([stub]))

    def parameter(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A random parameter to trace with, of a size of its own along every elastic axis."""
        units = self.family.axes(name)
        shape = [self.widths.get(unit, size) for unit, size in zip(units, value.shape, strict=True)]
        return torch.randn(shape).requires_grad_(True)

    def dims(self, tensor: torch.Tensor) -> Dims:
        """The free axes of an input."""
        return {axis: self._free[size] for axis, size in enumerate(tensor.shape) if size in self._free}


def _batch(batch: int, tokens: int, labels: int) -> tuple[torch.Tensor, ...]:
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[0, 1:] = 0  # transformers drops a mask without padding, and with it an input of the layer
    ids = torch.full_like(mask, 2)
    return ids, mask, torch.zeros(batch, dtype=torch.int64), torch.zeros(labels)


def _fresh_sizes(module: nn.Module) -> Iterator[int]:
    """Sizes from 3 on that no tensor of ``module`` has."""
    fixed = {size for tensor in itertools.chain(module.parameters(), module.buffers()) for size in tensor.shape}
    return (size for size in itertools.count(3) if size not in fixed)
