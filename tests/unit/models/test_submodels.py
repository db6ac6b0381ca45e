"""Submodels on compiled graphs; for every family in float64 see test_every_family.py."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation
from coordinator.models.templates import Templates
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.submodel import Submodel, full
from tests.support.masking import masked
from tests.support.tiny_models import in_every_stack

MINILM = Submodel((0, 1, 2, 3, 4, 5), (12, 3, 5, 1, 8, 6), (1536, 100, 500, 64, 1000, 700))


@pytest.mark.parametrize("window", [(0, 0), (2, 45)], ids=["prefix", "window"])
def test_submodel_graph_equals_the_full_graph_masked(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[Batch], window: tuple[int, int]
) -> None:
    architecture = tiny.architecture
    widths = Submodel((0, 1, 2), (2, 1, 3), (25, 1, 49), min(3, architecture.adapter_rank), *window)
    submodel = in_every_stack(widths, architecture)
    evaluator = Evaluator(tiny_templates, tiny_batches, threads=1)
    cut = evaluator.logits(submodel, tiny.parameters)
    whole = evaluator.logits(full(tiny.architecture), masked(tiny, submodel))

    assert all(np.abs(one - other).max() <= 1e-5 for one, other in zip(cut, whole, strict=True))


@pytest.mark.minilm
def test_submodel_of_a_pretrained_model_equals_it_masked(
    minilm: Foundation, minilm_templates: Templates, minilm_batches: list[Batch]
) -> None:
    evaluator = Evaluator(minilm_templates, minilm_batches, threads=1)
    cut = evaluator.logits(MINILM, minilm.parameters)
    whole = evaluator.logits(full(minilm.architecture), masked(minilm, MINILM))

    assert all(np.abs(one - other).max() <= 1e-5 for one, other in zip(cut, whole, strict=True))
