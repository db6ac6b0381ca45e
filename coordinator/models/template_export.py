"""Trace a foundation model's layer and shell, with their gradients, into the two templates.

The layers are cut out of the model by a stub that records what enters the first and returns what left the last; the
chain rule closes the cut: the shell's gradients take ``grad.hidden.in`` as the gradient of what the stub recorded.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import torch
from torch.func import functional_call
from torch.nn import functional

from coordinator.models.foundation import Foundation
from coordinator.models.joint_export import export_function
from coordinator.models.templates import HIDDEN_IN, HIDDEN_OUT, batch_inputs
from coordinator.models.tracing import LayerStub, Tensors, Trace
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ModelFormatError
from edge_sdk.protocol.graphs import GRADIENT, INPUTS, LOGITS, LOSS


def export_layer(foundation: Foundation) -> onnx.ModelProto:
    """The layer template; see :mod:`coordinator.models.templates` for its inputs and outputs."""
    trace = Trace(foundation)
    call, parameters = trace.layer_call(), trace.layer_parameters()

    def forward_backward(
        parameters: Tensors, tensors: tuple[torch.Tensor, ...], grad_out: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        args, kwargs = call.with_tensors(tensors)
        out = functional_call(trace.layer, trace.own_names(parameters), args, kwargs)
        return (out, *gradients_of((out,), {HIDDEN_IN: tensors[0], **parameters}, (grad_out,)))

    tensors = (call.tensors[0].requires_grad_(True), *call.tensors[1:])
    model = export_function(
        forward_backward,
        (parameters, tensors, torch.randn_like(tensors[0])),
        trace.dims,
        inputs=[*parameters, *call.names, GRADIENT + HIDDEN_OUT],
        outputs=[HIDDEN_OUT, *_gradient_names([HIDDEN_IN, *parameters])],
    )
    return _read_sizes_from(HIDDEN_IN, model)


def export_shell(foundation: Foundation) -> onnx.ModelProto:
    """The shell template; its loss is the one of :mod:`edge_sdk.protocol.graphs`."""
    trace, task = Trace(foundation), foundation.architecture.task
    call, stub = trace.layer_call(), LayerStub()
    trace.replace_layers(stub)
    parameters = trace.shell_parameters()

    def forward_backward(
        parameters: Tensors, batch: tuple[torch.Tensor, ...], hidden_out: torch.Tensor, grad_in: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        given = dict(zip(batch_inputs(task), batch, strict=True))
        stub.hidden_out = hidden_out
        model_inputs = {name: given[name] for name in INPUTS[task]}
        logits = functional_call(trace.module, trace.own_names(parameters), (), model_inputs).logits
        loss = mean_loss(task, logits, *batch[len(model_inputs) :])
        hidden_in, *aux = stub.seen
        wanted = {HIDDEN_OUT: hidden_out, **parameters}
        gradients = gradients_of((loss, hidden_in), wanted, (torch.ones_like(loss), grad_in))
        return (loss, logits, hidden_in, *aux, *gradients)

    hidden = call.tensors[0]
    model = export_function(
        forward_backward,
        (parameters, trace.batch, hidden.clone().requires_grad_(True), torch.randn_like(hidden)),
        trace.dims,
        inputs=[*parameters, *batch_inputs(task), HIDDEN_OUT, GRADIENT + HIDDEN_IN],
        outputs=[LOSS, LOGITS, *call.names, *_gradient_names([HIDDEN_OUT, *parameters])],
    )
    return _read_sizes_from(INPUTS[task][0], model)


def mean_loss(
    task: ModelTask, logits: torch.Tensor, targets: torch.Tensor, logit_offset: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss that :mod:`edge_sdk.protocol.graphs` defines, a scalar.

    Cross-entropy is spelt out: torch.onnx loses the division by the batch in the gradient of torch's own.
    """
    if task is not ModelTask.TEXT_GENERATION:
        shifted = logits if logit_offset is None else logits + logit_offset
        return -(targets * functional.log_softmax(shifted, dim=-1)).sum() / targets.sum()
    counts = (targets >= 0).to(logits.dtype)
    picked = functional.log_softmax(logits, dim=-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(picked * counts).sum() / counts.sum()


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


def _read_sizes_from(source: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """Take batch and length from ``source`` instead of a boundary value that exists only after the layers have run.

    Torch reads a size from whichever tensor has it, so without this the stitched graph would have a cycle.
    """
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in {HIDDEN_OUT, GRADIENT + HIDDEN_OUT, GRADIENT + HIDDEN_IN}:
            if not any(attribute.name == "end" and attribute.i <= 2 for attribute in node.attribute):
                raise ModelFormatError(
                    f"{node.name} reads the hidden size from {node.input[0]}; expected batch or length"
                )
            node.input[0] = source
    return model


def _gradient_names(names: Iterable[str]) -> list[str]:
    return [GRADIENT + name for name in names]
