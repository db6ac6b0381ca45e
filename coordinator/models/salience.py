"""Rank heads and FFN neurons by how much the model's loss depends on them.

A unit's salience is the sum over its weights, biases left out. ``l1`` counts |w|, as RaFFM does (arXiv 2310.00247,
section 3.2), and needs no data. ``taylor`` counts |w · dL/dw|, to first order what the loss changes when the weight is
removed (Molchanov et al., arXiv 1906.10771).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.config import Salience
from coordinator.models.permutation import LayerOrder
from coordinator.models.running import Runner
from coordinator.models.templates import GRAD, Templates
from coordinator.models.text_batches import TextBatch
from coordinator.models.training_graph import training_graph
from edge_sdk.elastic.families import Family, Unit
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Architecture, TrainablePart, full
from edge_sdk.errors import ConfigurationError


def unit_orders(
    salience: Salience,
    templates: Templates,
    parameters: Mapping[str, Array],
    batches: Sequence[TextBatch],
    *,
    threads: int,
) -> tuple[LayerOrder, ...]:
    """For every layer, its heads and FFN neurons by falling salience; equal ones keep their order.

    ``parameters`` are the full model's; ``batches`` are the calibration texts of ``TAYLOR``, about 256 in all, and are
    not read for ``L1``. Raises ``ConfigurationError`` where ``TAYLOR`` has none.
    """
    weights = _elastic_weights(parameters, templates.family)
    if salience is Salience.TAYLOR:
        gradients = loss_gradients(templates, parameters, batches, threads=threads)
        weights = {name: values * gradients[name] for name, values in weights.items()}
    return _orders({name: np.abs(values) for name, values in weights.items()}, templates.family, templates.architecture)


def loss_gradients(
    templates: Templates, parameters: Mapping[str, Array], batches: Sequence[TextBatch], *, threads: int
) -> dict[str, Array]:
    """The gradient of the loss over all texts of ``batches`` for every parameter outside the embeddings.

    It is the mean over texts, whatever the batches' sizes. Raises ``ConfigurationError`` where there are none.
    """
    texts = sum(len(batch.labels) for batch in batches)
    if texts == 0:
        raise ConfigurationError("taylor salience needs calibration texts, got none; give some or choose l1")
    graph = training_graph(templates, full(templates.architecture), TrainablePart.NO_EMBEDDINGS)
    runner = Runner(graph, threads=threads)
    total: dict[str, Array] = {}
    for batch in batches:
        outputs = runner.run(batch.feeds(templates.architecture.labels), parameters)
        for output in outputs:
            if output.startswith(GRAD):
                share = outputs[output] * np.float32(len(batch.labels) / texts)
                name = output.removeprefix(GRAD)
                total[name] = total[name] + share if name in total else share
    return total


def _elastic_weights(parameters: Mapping[str, Array], family: Family) -> dict[str, Array]:
    """The weight matrices with an elastic axis."""
    return {
        name: values
        for name, values in parameters.items()
        if values.ndim == 2 and _elastic_axis(name, family) is not None
    }


def _elastic_axis(name: str, family: Family) -> int | None:
    return next((axis for axis, unit in enumerate(family.axes(name)) if unit is not None), None)


def _orders(weights: Mapping[str, Array], family: Family, architecture: Architecture) -> tuple[LayerOrder, ...]:
    salience = {
        (layer, unit): np.zeros(count)
        for layer in range(architecture.layers)
        for unit, count in ((Unit.HEADS, architecture.heads), (Unit.FFN, architecture.ffn))
    }
    for name, values in weights.items():
        axis, layer = _elastic_axis(name, family), family.layer_index(name)
        if axis is not None and layer is not None and (unit := family.axes(name)[axis]) is not None:
            total = salience[layer, unit]
            total += values.sum(axis=1 - axis, dtype=np.float64).reshape(len(total), -1).sum(axis=1)
    falling = {key: np.argsort(-values, kind="stable") for key, values in salience.items()}
    return tuple(LayerOrder(falling[i, Unit.HEADS], falling[i, Unit.FFN]) for i in range(architecture.layers))
