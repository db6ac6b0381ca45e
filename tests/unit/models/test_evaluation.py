from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation
from coordinator.models.templates import Templates
from coordinator.models.text_batches import TextBatch, text_batches
from coordinator.models.torch_modules import torch_module
from edge_sdk.elastic.submodel import Submodel, full
from tests.support.tiny_models import WORDS


@pytest.mark.parametrize("submodel", [None, Submodel((0, 2), (2, 1), (25, 1))], ids=["full", "cut"])
def test_evaluation_equals_torchs(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[TextBatch], submodel: Submodel | None
) -> None:
    module = torch_module(tiny, submodel)
    with torch.no_grad():
        logits = torch.cat(
            [
                module(input_ids=torch.tensor(b.input_ids), attention_mask=torch.tensor(b.attention_mask)).logits
                for b in tiny_batches
            ]
        )
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in tiny_batches]))

    evaluator = Evaluator(tiny_templates, tiny_batches, threads=1)
    result = evaluator.evaluate(submodel or full(tiny.architecture), tiny.parameters)

    assert result.samples == len(labels)
    assert result.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert result.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_batches_hold_texts_of_like_length_cut_and_padded(tiny: Foundation) -> None:
    texts = [" ".join(WORDS), "alpha", "alpha beta", "gamma"]
    short, long = text_batches(tiny, texts, [0, 1, 2, 1], max_tokens=5, batch_size=2)

    assert short.input_ids.tolist() == [[0, 3, 2], [0, 5, 2]]
    assert short.labels.tolist() == [1, 1]
    assert long.input_ids.tolist() == [[0, 3, 4, 2, 1], [0, 3, 4, 5, 2]]
    assert long.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert long.labels.tolist() == [2, 0]
