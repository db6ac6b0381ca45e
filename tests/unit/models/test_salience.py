from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coordinator.config import Salience
from coordinator.models.batches import batches_of
from coordinator.models.foundation import Foundation
from coordinator.models.salience import UnitSalience, loss_gradients, unit_salience
from coordinator.models.templates import Templates
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.slicing import slices_of
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import ConfigurationError
from tests.support.tiny_examples import tiny_examples
from tests.support.tiny_models import in_every_stack
from tests.unit.models.conftest import RECIPE


def with_silent_units(foundation: Foundation) -> Foundation:
    """Every weight of the last head and of the last neuron of layer 1 is zero."""
    sizes = foundation.architecture
    kept = in_every_stack(Submodel((1,), (sizes.heads - 1,), (sizes.ffn - 1,), sizes.adapter_rank), sizes)
    shapes = {name: values.shape for name, values in foundation.parameters.items()}
    parameters = dict(foundation.parameters)
    for name, region in slices_of(kept, sizes, foundation.family, shapes).items():
        if foundation.family.layer_index(name, sizes) == 1 and region.shape != shapes[name]:
            parameters[name] = np.zeros_like(parameters[name])
            for whole, _ in region.rectangles():
                parameters[name][whole] = foundation.parameters[name][whole]
    return replace(foundation, parameters=parameters)


@pytest.mark.parametrize("salience", [metric for metric in Salience if metric is not Salience.RANDOM])
def test_units_that_do_nothing_come_last(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[Batch], salience: Salience
) -> None:
    silent = with_silent_units(tiny)
    orders = unit_salience(salience, silent, tiny_templates, tiny_batches, threads=1).orders(tiny.architecture)

    if not tiny.architecture.encoder_layers:  # whose layers share one order of heads
        assert orders[1].heads[-1] == tiny.architecture.heads - 1
    assert orders[1].ffn[-1] == tiny.architecture.ffn - 1
    for order in orders:
        assert sorted(order.heads) == list(range(tiny.architecture.heads))
        assert sorted(order.ffn) == list(range(tiny.architecture.ffn))


def test_random_salience_follows_its_seed_alone(tiny: Foundation, tiny_templates: Templates) -> None:
    one, same, other = (
        unit_salience(Salience.RANDOM, tiny, tiny_templates, [], threads=1, seed=seed) for seed in (1, 1, 2)
    )

    assert np.array_equal(one.heads, same.heads)
    assert not np.array_equal(one.heads, other.heads)


def test_gradient_is_the_mean_over_targets_whatever_the_batches(tiny: Foundation, tiny_templates: Templates) -> None:
    by_three, at_once = (
        loss_gradients(
            tiny_templates, tiny.parameters, batches_of(tiny, tiny_examples(tiny), RECIPE, batch_size=size), threads=1
        )
        for size in (3, 8)
    )

    assert by_three.keys() == at_once.keys()
    largest = max(np.abs(values).max() for values in at_once.values())
    assert max(np.abs(by_three[name] - at_once[name]).max() for name in by_three) <= 1e-5 * largest


@pytest.mark.parametrize("salience", [Salience.TAYLOR, Salience.ACTIVATION])
def test_metric_that_needs_examples_is_refused_without(
    tiny: Foundation, tiny_templates: Templates, salience: Salience
) -> None:
    with pytest.raises(ConfigurationError, match=f"{salience.value}.*calibration"):
        unit_salience(salience, tiny, tiny_templates, [], threads=1)


def test_layers_are_ranked_by_all_their_units() -> None:
    salience = UnitSalience(np.array([[1.0, 1.0], [0.0, 5.0], [2.0, 2.0]]), np.array([[1.0], [0.0], [3.0]]))

    assert salience.layer_ranking() == (2, 1, 0)
