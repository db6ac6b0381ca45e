"""The graph that a device trains: loss, logits and the gradient of every trainable parameter of a submodel."""

from __future__ import annotations

import onnx

from coordinator.models.lookups import take_rows
from coordinator.models.stitching import stitch
from coordinator.models.templates import Templates
from edge_sdk.elastic.submodel import Submodel, TrainablePart
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.graphs import GRADIENT


def training_graph(templates: Templates, submodel: Submodel, part: TrainablePart) -> onnx.ModelProto:
    """The training step of ``submodel`` as plain ONNX, opset 20; its file is the same for every width.

    Inputs and outputs are those of :mod:`edge_sdk.protocol.graphs`; every parameter of the submodel is an input,
    float32, under its full-model name, and every parameter of ``part`` has a gradient.

    Raises ``ConfigurationError`` where the submodel asks for more than the architecture has, or ``part`` for adapters
    of a kind that has no graph.
    """
    submodel.check(templates.architecture)
    if part is TrainablePart.ADAPTERS and not templates.architecture.has_graph:
        raise ConfigurationError("these adapters have no training graph; train them on the runtime torch")
    family = templates.family

    def is_wanted(output: str) -> bool:
        return not output.startswith(GRADIENT) or family.is_trainable(output.removeprefix(GRADIENT), part)

    model = stitch(templates, submodel.layers, is_wanted)
    take_rows(model.graph)
    return model
