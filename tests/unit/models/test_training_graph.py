from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.models import compilation
from coordinator.models.batches import feeds
from coordinator.models.compilation import GRADIENT_TOLERANCE, compile_templates, gradient_errors, load_or_compile
from coordinator.models.foundation import Foundation
from coordinator.models.running import Runner
from coordinator.models.template_export import gradients_of
from coordinator.models.templates import Templates
from coordinator.models.training_graph import training_graph
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.submodel import Submodel, TrainablePart, full
from edge_sdk.errors import ConfigurationError, ModelFormatError
from edge_sdk.protocol.graphs import GRADIENT, TEXT_TASKS, row_inputs
from tests.support.tiny_models import in_every_stack

TINY = (
    Submodel((0, 1, 2), (3, 3, 3), (50, 50, 50), 4),
    Submodel((0, 2), (2, 1), (25, 1), 3),
    Submodel((1,), (3,), (49,), 1),
)
MINILM = (
    Submodel((0, 1, 2, 3, 4, 5), (12, 3, 5, 1, 8, 6), (1536, 100, 500, 64, 1000, 700)),
    Submodel((0, 2, 3, 5), (6, 6, 6, 6), (768, 768, 768, 768)),
    Submodel((4,), (1,), (1,)),
)


@pytest.mark.parametrize("submodel", TINY, ids=lambda submodel: submodel.width)
def test_gradients_equal_torchs_at_any_width_and_depth(
    tiny: Foundation, tiny_templates: Templates, submodel: Submodel
) -> None:
    rank = min(submodel.adapter_rank, tiny.architecture.adapter_rank)
    submodel = in_every_stack(replace(submodel, adapter_rank=rank), tiny.architecture)
    assert max(gradient_errors(tiny, tiny_templates, submodel).values()) <= GRADIENT_TOLERANCE


@pytest.mark.minilm
@pytest.mark.parametrize("submodel", MINILM, ids=lambda submodel: submodel.width)
def test_gradients_equal_torchs_for_a_pretrained_model(
    minilm: Foundation, minilm_templates: Templates, submodel: Submodel
) -> None:
    assert max(gradient_errors(minilm, minilm_templates, submodel).values()) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("part", TrainablePart)
def test_outputs_are_the_gradients_of_the_trainable_part(
    tiny: Foundation, tiny_templates: Templates, part: TrainablePart
) -> None:
    graph = training_graph(tiny_templates, full(tiny.architecture), part).graph
    trainable = {GRADIENT + name for name in tiny.parameters if tiny.family.is_trainable(name, part)}

    assert {value.name for value in graph.output} == {"loss", "logits"} | trainable
    given = {value.name for value in graph.input}
    assert given - row_inputs(given).keys() == {*tiny_templates.batch_inputs, *tiny.parameters}


def test_table_of_words_is_taken_by_rows_where_it_is_frozen_and_not_the_head(
    tiny: Foundation, tiny_templates: Templates
) -> None:
    if tiny.architecture.task not in TEXT_TASKS:
        pytest.skip("nothing is looked up")
    words = {name for name, values in tiny.parameters.items() if values.shape[0] == tiny.architecture.vocabulary}
    heads = {name for name in words if name.startswith(tiny.family.head)}
    is_tied = tiny.architecture.task.generates and not heads
    for part, taken in ((TrainablePart.ALL, set()), (TrainablePart.HEAD, set() if is_tied else words - heads)):
        graph = training_graph(tiny_templates, full(tiny.architecture), part).graph
        rows = row_inputs(value.name for value in graph.input).values()
        assert {row.table for row in rows if row.table in words} == taken


def test_smaller_trainable_part_needs_fewer_nodes(tiny: Foundation, tiny_templates: Templates) -> None:
    parts = [part for part in TrainablePart if part is not TrainablePart.ADAPTERS or tiny.architecture.adapters]
    sizes = [len(training_graph(tiny_templates, full(tiny.architecture), part).graph.node) for part in parts]

    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_logit_offset_moves_the_loss_but_not_the_logits(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[Batch]
) -> None:
    if tiny.architecture.task.generates:
        pytest.skip("a model that generates text has no logit offset")
    runner = Runner(training_graph(tiny_templates, full(tiny.architecture), TrainablePart.HEAD), threads=1)
    given = feeds(tiny_batches[0], tiny.architecture)
    plain = runner.run(given, tiny.parameters)
    moved = runner.run(given, tiny.parameters, {"logit_offset": np.array([3, 0, 0], dtype=np.float32)})

    assert np.array_equal(plain["logits"], moved["logits"])
    assert plain["loss"] != moved["loss"]


def test_submodel_larger_than_the_model_is_refused(tiny_templates: Templates) -> None:
    with pytest.raises(ConfigurationError, match="99"):
        training_graph(tiny_templates, Submodel((0,), (99,), (1,)), TrainablePart.ALL)


def test_wrong_gradient_is_refused_when_templates_are_compiled(
    tiny: Foundation, tiny_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Templates(tiny_templates.architecture, tiny_templates.shell, tiny_templates.layers)
    monkeypatch.setattr(compilation, "export_shell", lambda _: _Serialised(wrong.shell))
    monkeypatch.setattr(compilation, "export_layers", lambda _: [*map(_Serialised, wrong.layers)])
    monkeypatch.setattr(compilation, "gradient_errors", lambda *_: {"score.weight": 3.0, "score.bias": 0.0})

    with pytest.raises(ModelFormatError, match=r"score\.weight"):
        compile_templates(tiny)


def test_parameter_that_does_nothing_is_named() -> None:
    used, idle = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)

    with pytest.raises(ModelFormatError, match="idle"):
        gradients_of((used.sum(),), {"used": used, "idle": idle}, (torch.ones(()),))


def test_templates_are_compiled_once(
    tiny: Foundation, tiny_templates: Templates, template_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "compile_templates", lambda _: pytest.fail("compiled again"))

    assert load_or_compile(tiny, template_cache) == tiny_templates


class _Serialised:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self._data
