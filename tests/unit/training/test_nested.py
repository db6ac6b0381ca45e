from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.data.batches import Batch
from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import shapes_of, slices_of
from edge_sdk.elastic.submodel import Architecture, ModelTask, Submodel
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import Recipe
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.nested import has_teacher, nested_prefixes, nested_slices, taught_targets
from edge_sdk.training.onnx_runtime import OnnxRuntime
from edge_sdk.training.runtime import take_step
from tests.support import logistic_graph
from tests.support.logistic_graph import HIDDEN, LABELS, WORDS

LAYER = "bert.encoder.layer.0."
# The hidden axis of the classifier counts FFN neurons under this name, that of the embedding heads of size 1.
NAMES = {
    "embedding.weight": f"{LAYER}attention.output.dense.weight",
    "classifier.weight": f"{LAYER}output.dense.weight",
    "grad.classifier.weight": f"grad.{LAYER}output.dense.weight",
}
ARCHITECTURE = Architecture("bert", 1, HIDDEN, 1, HIDDEN, HIDDEN, len(WORDS), 16, len(LABELS))
NESTED = (Submodel((0,), (2,), (2,)), Submodel((0,), (1,), (1,)))
INPUTS = {"input_ids": np.array([[2, 3], [4, 6]]), "attention_mask": np.array([[1, 1], [1, 0]])}
BATCH = Batch(INPUTS, np.array([[0, 1], [1, 0]], dtype=np.float32))
OFFSET = np.array([0.3, -0.3], dtype=np.float32)


def nested_job(folder: Path, nested: tuple[Submodel, ...], distillation: float = 1.0) -> TrainingJob:
    recipe = Recipe(learning_rate=0.05, batch_size=8, epochs=4, max_tokens=16, distillation=distillation)
    job = logistic_graph.training_job(folder, architecture=ARCHITECTURE, nested=nested, recipe=recipe)
    values = logistic_graph.parameters(1)
    Path(job.graph).write_bytes(logistic_graph.training_graph(NAMES).SerializeToString())
    with Path(job.frozen).open("wb") as file:
        write_tensors(file, {NAMES["embedding.weight"]: values["embedding.weight"]})
    with Path(job.weights).open("wb") as file:
        write_tensors(file, {NAMES.get(name, name): values[name] for name in ("classifier.weight", "classifier.bias")})
    return job


class RecordingOptimizer:
    """Keeps the gradients of one step, and changes nothing."""

    def step(self, _weights: object, gradients: list[np.ndarray]) -> None:
        self.bias, self.weight = (gradient.copy() for gradient in gradients)  # the smaller first


def gradients_of(job: TrainingJob) -> RecordingOptimizer:
    runtime = OnnxRuntime(job, OFFSET)
    optimizer = RecordingOptimizer()
    runtime._optimizer = optimizer  # type: ignore[assignment]
    take_step(runtime, BATCH, job)
    return optimizer


def formula(width: int, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of weight and bias of the classifier that sees the first ``width`` axes, and its probabilities."""
    values = {name: array.astype(np.float64) for name, array in logistic_graph.parameters(1).items()}
    mask = INPUTS["attention_mask"][..., None]
    pooled = ((values["embedding.weight"][INPUTS["input_ids"]] * mask).sum(1) / mask.sum(1))[:, :width]
    logits = pooled @ values["classifier.weight"][:, :width].T + values["classifier.bias"] + OFFSET
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    excess = p - targets
    return excess.T @ pooled / 2, excess.mean(0), p


@pytest.mark.parametrize("distillation", [0.0, 0.4, 1.0])
def test_nested_step_sums_the_gradients_of_all_widths(tmp_path: Path, distillation: float) -> None:
    weight, bias, teacher = formula(HIDDEN, BATCH.targets)
    alone = gradients_of(nested_job(tmp_path, ()))
    np.testing.assert_allclose(alone.weight.reshape(2, HIDDEN), weight, rtol=1e-5, atol=1e-7)
    together = gradients_of(nested_job(tmp_path, NESTED, distillation))
    for width in (2, 1):
        inner, inner_bias, _ = formula(width, distillation * teacher + (1 - distillation) * BATCH.targets)
        weight[:, :width] += inner
        bias += inner_bias
    np.testing.assert_allclose(together.weight.reshape(2, HIDDEN), weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(together.bias, bias, rtol=1e-5, atol=1e-7)


def test_nested_step_follows_the_weights_as_they_change(tmp_path: Path) -> None:
    job = nested_job(tmp_path, NESTED[:1])
    runtime = OnnxRuntime(job, OFFSET)
    for _ in range(3):
        take_step(runtime, BATCH, job)
    name = NAMES["classifier.weight"]
    before = runtime._weights[name].copy()
    take_step(runtime, BATCH, job)
    np.testing.assert_array_equal(runtime._nested[0][0].values[name], before[:, :2])


def test_teacher_says_nothing_about_what_does_not_count() -> None:
    targets = np.array([[[1, 0, 0], [0, 0, 0]]], dtype=np.float32)
    logits = np.array([[[1000, 1000, 0], [5, 1, 2]]], dtype=np.float32)
    taught = taught_targets(targets, logits, np.zeros(3, dtype=np.float32), 0.5)
    np.testing.assert_allclose(taught, [[[0.75, 0.25, 0], [0, 0, 0]]], atol=1e-7)


def test_nested_submodels_share_one_buffer() -> None:
    parameters = {NAMES["classifier.weight"]: np.arange(6, dtype=np.float32).reshape(2, 3)}
    wide, narrow = nested_prefixes(NESTED, ARCHITECTURE, parameters)
    for prefix, width in ((wide, 2), (narrow, 1), (wide, 2)):
        prefix.refresh(parameters)
        values = prefix.values[NAMES["classifier.weight"]]
        np.testing.assert_array_equal(values, parameters[NAMES["classifier.weight"]][:, :width])
    assert np.shares_memory(*(prefix.values[NAMES["classifier.weight"]] for prefix in (wide, narrow)))


@pytest.mark.parametrize("nested", [Submodel((1,), (1,), (1,)), Submodel((0,), (3,), (1,))])
def test_nested_that_is_no_prefix_is_refused(nested: Submodel) -> None:
    architecture = Architecture("bert", 2, 4, 1, 4, 4, 8, 16, 2)
    with pytest.raises(ConfigurationError, match="no prefix"):
        nested_slices(nested, architecture, {f"{LAYER}attention.self.query.weight": (2, 4)})


GPT2 = Architecture("gpt2", 2, 4, 2, 8, 8, 11, 16, 2)
GPT2_SHAPES = {
    "transformer.h.1.attn.c_attn.weight": (8, 24),
    "transformer.h.1.attn.c_proj.weight": (8, 8),
    "transformer.h.1.mlp.c_fc.bias": (8,),
}


@pytest.mark.parametrize("first_head", [0, 1, 2])
def test_nested_of_a_window_takes_the_first_of_its_own_units(first_head: int) -> None:
    """A window from head 2 on goes around the end: its own arrays begin with head 0, in every array alike."""
    window = Submodel((1,), (3,), (4,), first_head=first_head, first_neuron=6)
    nested = Submodel((1,), (2,), (3,), first_head=first_head, first_neuron=6)
    own = slices_of(window, GPT2, family_of("gpt2"), GPT2_SHAPES)
    inner = nested_slices(nested, GPT2, shapes_of(own))

    def units(name: str, axis: int, entries: int) -> list[int]:
        """Which of the full model's units each unit of the nested array is."""
        kept = [index for part in own[name].axes[axis] for index in part]
        chosen = [kept[index] for part in inner[name].axes[axis] for index in part]
        return [index // entries for index in chosen[::entries]]

    heads = [0, 2] if first_head == 2 else [first_head, first_head + 1]
    fused, output, neurons = GPT2_SHAPES
    assert units(output, 0, 2) == heads
    assert units(fused, 1, 2) == [block * 4 + head for block in range(3) for head in heads]
    assert units(neurons, 0, 1) == [0, 1, 6]
    assert nested_slices(replace(nested, first_head=0, first_neuron=0), GPT2, shapes_of(own)) == inner


@pytest.mark.parametrize(
    ("task", "distillation", "expected"),
    [
        (ModelTask.TEXT_CLASSIFICATION, 1.0, True),
        (ModelTask.TOKEN_CLASSIFICATION, 0.1, True),
        (ModelTask.TEXT_CLASSIFICATION, 0.0, False),
        (ModelTask.TEXT_GENERATION, 1.0, False),
    ],
)
def test_nested_is_taught_unless_text_is_generated(task: ModelTask, distillation: float, expected: bool) -> None:
    recipe = Recipe(learning_rate=0.05, batch_size=8, epochs=4, max_tokens=16, distillation=distillation)
    assert has_teacher(recipe, task) is expected
