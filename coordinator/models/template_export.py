"""Traces a foundation model's layers and shell, with their gradients, into the templates.

The layers of a stack are cut out of the model by a stub that records what enters the first and returns what left the
last; the chain rule closes the cut: the shell's gradients take ``grad.hidden.in``, and ``grad.aux.*`` where there is
one, as the gradients of what the stub recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
import torch
from torch.func import functional_call
from torch.nn import functional

from coordinator.models.foundation import Foundation
from coordinator.models.joint_export import export_function
from coordinator.models.templates import HIDDEN_IN, HIDDEN_OUT, at_stack, batch_inputs
from coordinator.models.tracing import Tensors, Trace
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ModelFormatError
from edge_sdk.protocol.graphs import DECODER_INPUT, GRADIENT, INPUTS, LOGITS, LOSS


def export_layers(foundation: Foundation) -> tuple[onnx.ModelProto, ...]:
    """The layer templates, one a stack; see :mod:`coordinator.models.templates` for their inputs and outputs."""
    trace = Trace(foundation)
    return tuple(_export_layer(trace, stack) for stack in range(len(trace.layers)))


def _export_layer(trace: Trace, stack: int) -> onnx.ModelProto:
    call, layer, parameters = trace.calls[stack], trace.layers[stack], trace.layer_parameters(stack)
    wanted = call.differentiable

    def forward_backward(
        parameters: Tensors, tensors: tuple[torch.Tensor, ...], grad_out: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        args, kwargs = call.with_tensors(tensors)
        out = functional_call(layer, trace.own_names(parameters), args, kwargs)
        out = out[0] if isinstance(out, tuple) else out
        given = {name: value for name, value in zip(call.names, tensors, strict=True) if name in wanted}
        return (out, *gradients_of((out,), given | parameters, (grad_out,)))

    tensors = tuple(
        tensor.detach().requires_grad_(name in wanted) for name, tensor in zip(call.names, call.tensors, strict=True)
    )
    model = export_function(
        forward_backward,
        (parameters, tensors, torch.randn_like(tensors[0])),
        trace.free_sizes,
        inputs=[*parameters, *call.names, GRADIENT + HIDDEN_OUT],
        outputs=[HIDDEN_OUT, *_gradient_names([*wanted, *parameters])],
    )
    return _read_sizes_from(dict.fromkeys((HIDDEN_OUT, GRADIENT + HIDDEN_OUT), HIDDEN_IN), model)


def export_shell(foundation: Foundation) -> onnx.ModelProto:
    """The shell template; its loss is the one of :mod:`edge_sdk.protocol.graphs`."""
    trace, task = Trace(foundation), foundation.architecture.task
    parameters = trace.shell_parameters()
    names = [[at_stack(stack, name) for name in call.names] for stack, call in enumerate(trace.calls)]
    cut = [at_stack(stack, name) for stack, call in enumerate(trace.calls) for name in call.differentiable]
    ends = [at_stack(stack, HIDDEN_OUT) for stack in range(len(trace.calls))]

    def forward_backward(
        parameters: Tensors, batch: tuple[torch.Tensor, ...], hidden_out: Tensors, grads: Tensors
    ) -> tuple[torch.Tensor, ...]:
        given = dict(zip(batch_inputs(task), batch, strict=True))
        for stub, value in zip(trace.stubs, hidden_out.values(), strict=True):
            stub.hidden_out = value
        model_inputs = {name: given[name] for name in INPUTS[task]}
        logits = functional_call(trace.module, trace.own_names(parameters), (), model_inputs).logits
        loss = mean_loss(task, logits, *batch[len(model_inputs) :])
        seen = {
            name: tensor
            for of_stack, stub in zip(names, trace.stubs, strict=True)
            for name, tensor in zip(of_stack, stub.call.tensors, strict=True)
        }
        outputs = (loss, *(seen[name] for name in cut))
        gradients = gradients_of(outputs, hidden_out | parameters, (torch.ones_like(loss), *grads.values()))
        return (loss, logits, *seen.values(), *gradients)

    recorded = {
        name: tensor.detach()
        for of_stack, call in zip(names, trace.calls, strict=True)
        for name, tensor in zip(of_stack, call.tensors, strict=True)
    }
    hidden = [torch.randn_like(recorded[of_stack[0]]).requires_grad_(True) for of_stack in names]
    model = export_function(
        forward_backward,
        (
            parameters,
            trace.batch,
            dict(zip(ends, hidden, strict=True)),
            {name: torch.randn_like(recorded[name]) for name in cut},
        ),
        trace.free_sizes,
        inputs=[*parameters, *batch_inputs(task), *ends, *_gradient_names(cut)],
        outputs=[LOSS, LOGITS, *recorded, *_gradient_names([*ends, *parameters])],
    )
    return _read_sizes_from(_sources(task, ends, cut), model)


def mean_loss(
    task: ModelTask, logits: torch.Tensor, targets: torch.Tensor, logit_offset: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss that :mod:`edge_sdk.protocol.graphs` defines, a scalar.

    Cross-entropy is spelt out: torch.onnx loses the division by the batch in the gradient of torch's own.
    """
    if not task.generates:
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


def _sources(task: ModelTask, ends: Sequence[str], cut: Sequence[str]) -> dict[str, str]:
    """For each value that exists in the shell only after layers have run, an earlier one of the same batch and length.

    A gradient that is given has the shape of what it is the gradient of.
    """
    given = INPUTS[task]
    tokens = (given[0], given[-1]) if DECODER_INPUT in given else given[:1]
    sources = dict(zip(ends, tokens, strict=True))
    firsts = {at_stack(stack, HIDDEN_IN): name for stack, name in enumerate(tokens)}
    return sources | {GRADIENT + name: firsts.get(name, name) for name in cut}


def _read_sizes_from(sources: Mapping[str, str], model: onnx.ModelProto) -> onnx.ModelProto:
    """Take batch and length from elsewhere than from a boundary value that exists only after the layers have run.

    Torch reads a size from whichever tensor has it, so without this the stitched graph would have a cycle.
    """
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] in sources:
            is_hidden = HIDDEN_OUT in node.input[0] or HIDDEN_IN in node.input[0]
            if is_hidden and not any(attribute.name == "end" and attribute.i <= 2 for attribute in node.attribute):
                raise ModelFormatError(
                    f"{node.name} reads the hidden size from {node.input[0]}; expected batch or length"
                )
            node.input[0] = sources[node.input[0]]
    return model


def _gradient_names(names: Iterable[str]) -> list[str]:
    return [GRADIENT + name for name in names]
