from __future__ import annotations

import pytest
import torch

from coordinator.models.batches import batches_of
from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation
from coordinator.models.template_export import mean_loss
from coordinator.models.templates import Templates
from coordinator.models.torch_modules import torch_module
from edge_sdk.data import PlainTexts
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.submodel import Submodel, full
from edge_sdk.errors import DataFormatError
from tests.support.tiny_examples import tiny_examples
from tests.support.tiny_models import in_every_stack
from tests.unit.models.conftest import RECIPE


def cut_of(foundation: Foundation) -> Submodel:
    """Two of the three layers, unequal, with half of the adapters' ranks."""
    architecture = foundation.architecture
    return in_every_stack(Submodel((0, 2), (2, 1), (25, 1), architecture.adapter_rank // 2), architecture)


@pytest.mark.parametrize("is_cut", [False, True], ids=["full", "cut"])
def test_evaluation_equals_torchs(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[Batch], is_cut: bool
) -> None:
    submodel, task = cut_of(tiny) if is_cut else full(tiny.architecture), tiny.architecture.task
    module, right, loss = torch_module(tiny, submodel), 0.0, 0.0
    for batch in tiny_batches:
        targets = torch.from_numpy(batch.targets)
        with torch.no_grad():
            logits = module(**{name: torch.from_numpy(values) for name, values in batch.inputs.items()}).logits
        loss += mean_loss(task, logits, targets).item() * batch.count(task)
        counts, wanted = (targets >= 0, targets) if task.generates else (targets.sum(-1) > 0, targets.argmax(-1))
        right += (logits.argmax(-1) == wanted)[counts].sum().item()

    result = Evaluator(tiny_templates, tiny_batches, threads=1).evaluate(submodel, tiny.parameters)

    assert result.samples == sum(batch.count(task) for batch in tiny_batches)
    assert result.accuracy == pytest.approx(right / result.samples)
    assert result.loss == pytest.approx(loss / result.samples, rel=1e-5)


def test_batches_hold_every_example_the_short_before_the_long(tiny: Foundation) -> None:
    batches = batches_of(tiny, tiny_examples(tiny), RECIPE, batch_size=3)
    widths = [next(iter(batch.inputs.values())).shape[1] for batch in batches]

    assert [len(batch.targets) for batch in batches] == [3, 3, 2]
    assert widths == sorted(widths)


def test_examples_of_another_task_are_refused(minilm: Foundation) -> None:
    with pytest.raises(DataFormatError, match=r"text-generation.*text-classification"):
        batches_of(minilm, PlainTexts(("some text",)), RECIPE)
