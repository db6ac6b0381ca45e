from __future__ import annotations

import numpy as np
import pytest

from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation
from coordinator.models.permutation import LayerOrder, inverse, permute
from coordinator.models.templates import Templates
from coordinator.models.text_batches import TextBatch

SEED = 7


def random_orders(foundation: Foundation) -> list[LayerOrder]:
    random, sizes = np.random.default_rng(SEED), foundation.architecture
    return [LayerOrder(random.permutation(sizes.heads), random.permutation(sizes.ffn)) for _ in range(sizes.layers)]


def permuted(foundation: Foundation) -> dict[str, np.ndarray]:
    return permute(foundation.parameters, foundation.family, foundation.architecture, random_orders(foundation))


def test_permutation_preserves_the_function(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[TextBatch]
) -> None:
    evaluator = Evaluator(tiny_templates, tiny_batches, threads=1)

    assert evaluator.max_logit_difference(tiny.parameters, permuted(tiny)) <= 1e-4


@pytest.mark.minilm
def test_permutation_preserves_a_pretrained_model(
    minilm: Foundation, minilm_templates: Templates, minilm_batches: list[TextBatch]
) -> None:
    evaluator = Evaluator(minilm_templates, minilm_batches, threads=1)

    assert evaluator.max_logit_difference(minilm.parameters, permuted(minilm)) <= 1e-4


def test_permuting_values_alone_changes_the_function(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[TextBatch]
) -> None:
    value = f"{tiny.family.layer.format(0)}{tiny.family.v}.weight"
    broken = tiny.parameters | {value: permuted(tiny)[value]}

    assert Evaluator(tiny_templates, tiny_batches, threads=1).max_logit_difference(tiny.parameters, broken) > 1e-3


def test_inverse_undoes_a_permutation_exactly(tiny: Foundation) -> None:
    undone = permute(permuted(tiny), tiny.family, tiny.architecture, inverse(random_orders(tiny)))

    assert all(np.array_equal(undone[name], values) for name, values in tiny.parameters.items())


def test_permutation_moves_every_elastic_parameter(tiny: Foundation) -> None:
    moved = {name for name, values in permuted(tiny).items() if not np.array_equal(values, tiny.parameters[name])}

    assert moved == {name for name in tiny.parameters if any(tiny.family.axes(name))}
