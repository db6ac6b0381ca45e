from __future__ import annotations

import numpy as np
import pytest
import torch

from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation
from coordinator.models.templates import Templates
from coordinator.models.text_batches import TextBatch
from coordinator.models.torch_modules import torch_module
from edge_sdk.elastic.slicing import Array, slices_of
from edge_sdk.elastic.submodel import Submodel, full

TINY = Submodel((0, 1, 2), (2, 1, 3), (25, 1, 49))
MINILM = Submodel((0, 1, 2, 3, 4, 5), (12, 3, 5, 1, 8, 6), (1536, 100, 500, 64, 1000, 700))


def masked(foundation: Foundation, submodel: Submodel) -> dict[str, Array]:
    """The full model with everything outside the submodel set to zero."""
    shapes = {name: values.shape for name, values in foundation.parameters.items()}
    slices = slices_of(submodel, foundation.architecture, foundation.family, shapes)
    zeroed = {name: np.zeros_like(values) for name, values in foundation.parameters.items()}
    for name, axes in slices.items():
        zeroed[name][axes] = foundation.parameters[name][axes]
    return zeroed


def test_submodel_equals_the_full_model_masked_in_float64(tiny: Foundation, tiny_batches: list[TextBatch]) -> None:
    inputs = {
        "input_ids": torch.from_numpy(tiny_batches[0].input_ids),
        "attention_mask": torch.from_numpy(tiny_batches[0].attention_mask),
    }
    cut = torch_module(tiny, TINY).double()(**inputs).logits
    whole = torch_module(tiny, parameters=masked(tiny, TINY)).double()(**inputs).logits

    assert (cut - whole).abs().max().item() <= 1e-14


def test_submodel_graph_equals_the_full_graph_masked(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[TextBatch]
) -> None:
    evaluator = Evaluator(tiny_templates, tiny_batches, threads=1)
    cut = evaluator.logits(TINY, tiny.parameters)
    whole = evaluator.logits(full(tiny.architecture), masked(tiny, TINY))

    assert np.abs(cut - whole).max() <= 1e-5


@pytest.mark.minilm
def test_submodel_of_a_pretrained_model_equals_it_masked(
    minilm: Foundation, minilm_templates: Templates, minilm_batches: list[TextBatch]
) -> None:
    evaluator = Evaluator(minilm_templates, minilm_batches, threads=1)
    cut = evaluator.logits(MINILM, minilm.parameters)
    whole = evaluator.logits(full(minilm.architecture), masked(minilm, MINILM))

    assert np.abs(cut - whole).max() <= 1e-5
