"""The graph that a device trains: loss, logits and the gradient of every trainable parameter of a submodel."""

from __future__ import annotations

import onnx

from coordinator.models.stitching import stitch
from coordinator.models.templates import GRAD, Templates
from edge_sdk.elastic.submodel import Submodel, TrainablePart


def training_graph(templates: Templates, submodel: Submodel, part: TrainablePart) -> onnx.ModelProto:
    """The training step of ``submodel`` as plain ONNX, opset 20; its file is the same for every width.

    Inputs: ``input_ids`` and ``attention_mask`` int64 (batch, tokens), ``labels`` int64 (batch,), ``logit_offset``
    float32 (labels,), and every parameter of the submodel, float32, under its full-model name.
    Outputs: ``loss`` (), the mean cross-entropy of logits + logit_offset; ``logits`` (batch, labels), without the
    offset; ``grad.<parameter>`` for every parameter of ``part``.

    Raises ``ConfigurationError`` where the submodel asks for more than the architecture has.
    """
    submodel.check(templates.architecture)
    family = templates.family

    def is_wanted(output: str) -> bool:
        return not output.startswith(GRAD) or family.is_trainable(output.removeprefix(GRAD), part)

    return stitch(templates, submodel.layers, is_wanted)
