"""Two ONNX graphs per architecture, from which every submodel's graph is stitched.

``layer`` is one transformer layer, ``shell`` everything around the layers: embeddings, head and loss. Both compute
their own gradients. Widths, batch and length are symbolic, so one pair serves every width and, chained, every depth;
which parameters are trained is decided when a graph is stitched, by asking for those gradients only.

    shell:  input_ids, attention_mask, labels, logit_offset, parameters  ->  loss, logits, gradients
            hidden.out, grad.hidden.in                                   ->  hidden.in, aux.*, grad.hidden.out
    layer:  hidden.in, aux.*, parameters, grad.hidden.out                ->  hidden.out, grad.hidden.in, gradients

``hidden.in`` enters the first layer and ``hidden.out`` leaves the last, both (batch, tokens, hidden); ``aux.*`` is what
else the model passes to a layer, usually the expanded mask. A layer's parameters are named relative to the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.elastic.families import Family, family_of
from edge_sdk.elastic.submodel import Architecture

BATCH_INPUTS = ("input_ids", "attention_mask", "labels", "logit_offset")
HIDDEN_IN = "hidden.in"
HIDDEN_OUT = "hidden.out"
AUX = "aux."
GRAD = "grad."


@dataclass(frozen=True, slots=True)
class Templates:
    """Serialised ONNX models of one architecture's ``shell`` and ``layer``; weights are inputs, so both are small."""

    architecture: Architecture
    shell: bytes
    layer: bytes

    @property
    def family(self) -> Family:
        """Where this architecture keeps its units."""
        return family_of(self.architecture.family)
