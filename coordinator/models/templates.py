"""Two ONNX graphs per architecture, from which every submodel's graph is stitched.

``layer`` is one transformer layer, ``shell`` everything around the layers: embeddings, head and loss. Both compute
their own gradients. Widths, ranks, batch and length are symbolic, so one pair serves every width and, chained, every
depth; which parameters are trained is decided when a graph is stitched, by asking for those gradients only.

    shell:  the model's inputs, targets, logit_offset, parameters  ->  loss, logits, gradients
            hidden.out, grad.hidden.in                             ->  hidden.in, aux.*, grad.hidden.out
    layer:  hidden.in, aux.*, parameters, grad.hidden.out          ->  hidden.out, grad.hidden.in, gradients

``hidden.in`` enters the first layer and ``hidden.out`` leaves the last, both (batch, tokens, hidden); ``aux.*`` is what
else the model passes to a layer, such as the expanded mask or the rotary embedding's cosines. A layer's parameters are
named relative to the layer. All other names are those of :mod:`edge_sdk.protocol.graphs`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.elastic.families import Family, family_of
from edge_sdk.elastic.submodel import Architecture, ModelTask
from edge_sdk.protocol.graphs import INPUTS, LOGIT_OFFSET, TARGETS

HIDDEN_IN = "hidden.in"
HIDDEN_OUT = "hidden.out"
AUX = "aux."


def batch_inputs(task: ModelTask) -> tuple[str, ...]:
    """What a training graph of ``task`` is given beside parameters, in order."""
    offset = () if task is ModelTask.TEXT_GENERATION else (LOGIT_OFFSET,)
    return (*INPUTS[task], TARGETS, *offset)


@dataclass(frozen=True, slots=True)
class Templates:
    """Serialised ONNX models of one architecture's ``shell`` and ``layer``; weights are inputs, so both are small.

    Where the ``architecture`` has adapters of a kind without a graph, these are in neither: see :mod:`.merging`.
    """

    architecture: Architecture
    shell: bytes
    layer: bytes

    @property
    def family(self) -> Family:
        """Where this architecture keeps its units."""
        return family_of(self.architecture.family)

    @property
    def batch_inputs(self) -> tuple[str, ...]:
        """What a training graph is given beside parameters, in order."""
        return batch_inputs(self.architecture.task)
