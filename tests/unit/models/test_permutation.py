"""The permutation on compiled graphs, as a run checks it; for every family in float64 see test_every_family.py."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation
from coordinator.models.permutation import permute
from coordinator.models.templates import Templates
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.families import Axis
from tests.support.tiny_models import random_orders

SEED = 7


def permuted(foundation: Foundation) -> dict[str, np.ndarray]:
    orders = random_orders(foundation, SEED)
    return permute(foundation.parameters, foundation.family, foundation.architecture, orders)


def test_permutation_preserves_the_function(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[Batch]
) -> None:
    evaluator = Evaluator(tiny_templates, tiny_batches, threads=1)

    assert evaluator.max_logit_difference(tiny.parameters, permuted(tiny)) <= 1e-4


@pytest.mark.minilm
def test_permutation_preserves_a_pretrained_model(
    minilm: Foundation, minilm_templates: Templates, minilm_batches: list[Batch]
) -> None:
    evaluator = Evaluator(minilm_templates, minilm_batches, threads=1)

    assert evaluator.max_logit_difference(minilm.parameters, permuted(minilm)) <= 1e-4


def test_permuting_outputs_alone_changes_the_function(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[Batch]
) -> None:
    up = f"{tiny.family.layer_prefix(0, tiny.architecture)}{tiny.family.stacks[0].up[0]}.weight"
    broken = tiny.parameters | {up: permuted(tiny)[up]}

    assert Axis.FFN in tiny.family.axes(up)
    assert Evaluator(tiny_templates, tiny_batches, threads=1).max_logit_difference(tiny.parameters, broken) > 1e-3
