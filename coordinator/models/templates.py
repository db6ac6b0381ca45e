"""The ONNX graphs of an architecture from which every submodel's graph is stitched: a shell, and a layer a stack.

A ``layer`` is one transformer layer, the ``shell`` everything around the layers: embeddings, head and loss. All compute
their own gradients. Widths, ranks, batch and lengths are symbolic, so they serve every width and, chained, every
depth; which parameters are trained is decided when a graph is stitched, by asking for those gradients only.

    shell:  the model's inputs, targets, logit_offset, parameters  ->  loss, logits, gradients
            hidden.out, grad.hidden.in, grad.aux.*                 ->  hidden.in, aux.*, grad.hidden.out
    layer:  hidden.in, aux.*, parameters, grad.hidden.out          ->  hidden.out, grad.hidden.in, grad.aux.*, gradients

``hidden.in`` enters the first layer and ``hidden.out`` leaves the last, both (batch, tokens, hidden); ``aux.*`` is what
else the model passes to every layer of a stack: the expanded mask, the rotary embedding's cosines, T5's position bias,
and to a decoder what its encoder has made of the text. What of it depends on parameters has a gradient, which is summed
over the layers. In the shell these names begin with their stack, ``0.`` for the only one or the encoder, ``1.`` for
the decoder. A layer's parameters are named relative to the layer. All other names are those of
:mod:`edge_sdk.protocol.graphs`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.elastic.families import Family, family_of
from edge_sdk.elastic.submodel import Architecture, ModelTask
from edge_sdk.protocol.graphs import INPUTS, LOGIT_OFFSET, TARGETS

HIDDEN_IN = "hidden.in"
HIDDEN_OUT = "hidden.out"
AUX = "aux."
TOKENS, TARGET_TOKENS = "tokens", "target_tokens"
"""Names of dimensions: of a text, and of what a decoder reads."""


def batch_inputs(task: ModelTask) -> tuple[str, ...]:
    """What a training graph of ``task`` is given beside parameters, in order."""
    offset = () if task.generates else (LOGIT_OFFSET,)
    return (*INPUTS[task], TARGETS, *offset)


def at_stack(stack: int, name: str) -> str:
    """What the shell calls a layer's ``name`` that is no parameter."""
    return f"{stack}.{name}"


@dataclass(frozen=True, slots=True)
class Templates:
    """Serialised ONNX models of one architecture's ``shell`` and of a layer of each stack; weights are inputs.

    Where the ``architecture`` has adapters of a kind without a graph, these are in none: see :mod:`.merging`.
    """

    architecture: Architecture
    shell: bytes
    layers: tuple[bytes, ...]

    @property
    def family(self) -> Family:
        """Where this architecture keeps its units."""
        return family_of(self.architecture.family)

    @property
    def batch_inputs(self) -> tuple[str, ...]:
        """What a training graph is given beside parameters, in order."""
        return batch_inputs(self.architecture.task)
