from __future__ import annotations

import numpy as np
import pytest

from coordinator.config import Salience
from coordinator.models.foundation import Foundation
from coordinator.models.salience import loss_gradients, unit_orders
from coordinator.models.templates import Templates
from coordinator.models.text_batches import TextBatch, text_batches
from edge_sdk.elastic.families import Unit
from edge_sdk.errors import ConfigurationError
from tests.support.tiny_models import WORDS


def with_silent_units(foundation: Foundation, head: int, neuron: int) -> dict[str, np.ndarray]:
    """The parameters with every weight of one head and one neuron of layer 1 set to zero."""
    family, size = foundation.family, foundation.architecture.head_size
    silent = {Unit.HEADS: slice(head * size, (head + 1) * size), Unit.FFN: slice(neuron, neuron + 1)}
    parameters = {name: values.copy() for name, values in foundation.parameters.items()}
    for name, values in parameters.items():
        if family.layer_index(name) == 1 and any(axes := family.axes(name)):
            values[tuple(slice(None) if unit is None else silent[unit] for unit in axes)] = 0
    return parameters


@pytest.mark.parametrize("salience", Salience)
def test_units_that_do_nothing_come_last(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[TextBatch], salience: Salience
) -> None:
    orders = unit_orders(salience, tiny_templates, with_silent_units(tiny, 1, 31), tiny_batches, threads=1)

    assert orders[1].heads[-1] == 1
    assert orders[1].ffn[-1] == 31
    for order in orders:
        assert sorted(order.heads) == list(range(tiny.architecture.heads))
        assert sorted(order.ffn) == list(range(tiny.architecture.ffn))


def test_gradient_is_the_mean_over_texts_whatever_the_batches(tiny: Foundation, tiny_templates: Templates) -> None:
    texts, labels = [" ".join(WORDS[: 1 + index]) for index in range(7)], [0, 1, 2, 0, 1, 2, 0]
    by_two, at_once = (
        loss_gradients(
            tiny_templates,
            tiny.parameters,
            text_batches(tiny, texts, labels, max_tokens=16, batch_size=size),
            threads=1,
        )
        for size in (2, 7)
    )

    assert by_two.keys() == at_once.keys()
    largest = max(np.abs(values).max() for values in at_once.values())
    assert max(np.abs(by_two[name] - at_once[name]).max() for name in by_two) <= 1e-5 * largest


def test_taylor_without_texts_is_refused(tiny: Foundation, tiny_templates: Templates) -> None:
    with pytest.raises(ConfigurationError, match="calibration"):
        unit_orders(Salience.TAYLOR, tiny_templates, tiny.parameters, [], threads=1)
