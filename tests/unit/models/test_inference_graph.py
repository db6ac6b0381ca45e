from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation
from coordinator.models.inference_graph import inference_graph, release_graph
from coordinator.models.running import Runner
from coordinator.models.templates import Templates
from coordinator.models.torch_modules import torch_module
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.submodel import Submodel, full
from edge_sdk.inference.engine import Engine
from edge_sdk.protocol.graphs import INPUTS
from edge_sdk.protocol.releases import Precision
from tests.support.tiny_models import in_every_stack, tiny_tokenizer
from tests.unit.models.conftest import LONG

WRITERS = [case for case in LONG if case.task.generates and not case.has_adapters]


def half_of(foundation: Foundation) -> Submodel:
    architecture = foundation.architecture
    return in_every_stack(Submodel((0, 2), (2, 2), (25, 25), architecture.adapter_rank), architecture)


def released_logits(data: bytes, batch: Batch) -> np.ndarray:
    runner = Runner(onnx.load_from_string(data), threads=1)
    return runner.run(batch.inputs)["logits"]


def test_inference_graph_has_no_backward_pass(tiny: Foundation, tiny_templates: Templates) -> None:
    graph = inference_graph(tiny_templates, full(tiny.architecture)).graph

    assert [value.name for value in graph.output] == ["logits"]
    assert {value.name for value in graph.input} == {*INPUTS[tiny.architecture.task], *tiny.parameters}
    assert not [name for node in graph.node for name in node.output if name.startswith("grad.")]


def test_release_computes_what_the_submodel_computes(
    tiny: Foundation, tiny_templates: Templates, tiny_batches: list[Batch]
) -> None:
    data = release_graph(tiny_templates, half_of(tiny), tiny.parameters, Precision.FP32)
    expected = next(Evaluator(tiny_templates, tiny_batches[:1], threads=1).logits(half_of(tiny), tiny.parameters))

    assert np.abs(released_logits(data, tiny_batches[0]) - expected).max() <= 1e-5


def test_release_says_the_shape_of_a_window_or_an_image(tiny: Foundation, tiny_templates: Templates) -> None:
    data = release_graph(tiny_templates, half_of(tiny), tiny.parameters, Precision.INT8)
    dims = onnx.load_from_string(data).graph.input[0].type.tensor_type.shape.dim[1:]
    sizes = tuple(dim.dim_value for dim in dims if dim.HasField("dim_value"))
    assert sizes == tiny.architecture.input_shape


def test_quantised_release_stays_close(tiny: Foundation, tiny_templates: Templates, tiny_batches: list[Batch]) -> None:
    data = release_graph(tiny_templates, half_of(tiny), tiny.parameters, Precision.INT8)
    expected = next(Evaluator(tiny_templates, tiny_batches[:1], threads=1).logits(half_of(tiny), tiny.parameters))

    difference = released_logits(data, tiny_batches[0]) - expected
    assert 0 < np.linalg.norm(difference) <= 0.5 * np.linalg.norm(expected), "of a model so small; MiniLM's is far less"


@pytest.mark.minilm
def test_quantised_release_of_a_pretrained_model_is_small_and_close(
    minilm: Foundation, minilm_templates: Templates, minilm_batches: list[Batch]
) -> None:
    whole = full(minilm.architecture)
    data = release_graph(minilm_templates, whole, minilm.parameters, Precision.INT8)
    expected = next(Evaluator(minilm_templates, minilm_batches, threads=1).logits(whole, minilm.parameters))

    assert len(data) <= 25e6
    assert np.abs(released_logits(data, minilm_batches[0]) - expected).max() <= 0.02


def _every_id_a_word() -> bytes:
    words = {f"w{index}": index for index in range(3, 40)} | {"[CLS]": 0, "[PAD]": 1, "[SEP]": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = tiny_tokenizer().post_processor
    return tokenizer.to_str().encode()


@pytest.mark.long
@pytest.mark.parametrize(
    "tiny", [case for case in LONG if case.task.generates and not case.has_adapters], indirect=True
)
def test_release_writes_what_transformers_writes(tiny: Foundation, tiny_templates: Templates, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(
        release_graph(tiny_templates, full(tiny.architecture), tiny.parameters, Precision.FP32)
    )
    engine = Engine(tmp_path / "model.onnx", _every_id_a_word(), (), max_tokens=30)
    module = torch_module(tiny)
    for opening in ("w4", "w4 w9", "w30 w7 w4 w4 w12"):
        ids = [0, *(int(word[1:]) for word in opening.split()), *([2] if tiny.architecture.encoder_layers else [])]
        written = module.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=12,
            eos_token_id=2, pad_token_id=1,
        )[0].tolist()  # fmt: skip
        after = written[1:] if tiny.architecture.encoder_layers else written[len(ids) :]
        expected = [f"w{index}" for index in after if index > 2]
        assert engine.generate([opening], 12)[0].split() == expected
