from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.data.batches import Batch
from edge_sdk.errors import ModelFormatError, StorageError, TensorTableError, TrainingError
from edge_sdk.protocol.messages import Recipe
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from edge_sdk.training.files import write_whole
from edge_sdk.training.job import Progress, TrainingJob
from edge_sdk.training.onnx_runtime import OnnxRuntime
from edge_sdk.training.runtime import examples_of, train
from tests.support import logistic_graph
from tests.support.logistic_graph import WORDS

NO_OFFSET = np.zeros(2, dtype=np.float32)


class NumpyRuntime:
    """The same classifier with its gradients in numpy, double precision, and AdamW as the paper writes it."""

    def __init__(self, job: TrainingJob, offset: NDArray[np.float32]) -> None:
        values = {name: array.astype(np.float64) for name, array in logistic_graph.parameters(1).items()}
        self.embedding = values.pop("embedding.weight")
        self.start, self.now = values, {name: array.copy() for name, array in values.items()}
        self.moments = {name: [0.0, 0.0] for name in values}
        self.recipe, self.offset, self.t = job.recipe, offset, 0
        self.gradients: dict[str, NDArray[np.float64]] = {}

    def accumulate(self, batch: Batch, share: float) -> float:
        mask = batch.inputs["attention_mask"][..., None]
        pooled = (self.embedding[batch.inputs["input_ids"]] * mask).sum(1) / mask.sum(1)
        logits = pooled @ self.now["classifier.weight"].T + self.now["classifier.bias"] + self.offset
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        loss = -(batch.targets * np.log(p)).sum(1).mean()
        p -= batch.targets
        for name, gradient in {"classifier.weight": p.T @ pooled / len(p), "classifier.bias": p.mean(0)}.items():
            self.gradients[name] = self.gradients.get(name, 0.0) + share * gradient
        return float(loss)

    def update(self) -> None:
        self.t += 1
        for name, data_gradient in self.gradients.items():
            g = data_gradient + self.recipe.proximal * (self.now[name] - self.start[name])
            m, v = self.moments[name]
            self.moments[name] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            self.now[name] *= 1 - self.recipe.learning_rate * self.recipe.weight_decay
            ratio = (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-8)
            self.now[name] -= self.recipe.learning_rate * ratio
        self.gradients = {}

    def finish(self) -> dict[str, NDArray[np.float32]]:
        return {name: (self.now[name] - self.start[name]).astype(np.float32) for name in self.now}


@pytest.mark.parametrize("proximal", [0.0, 3.0])
@pytest.mark.parametrize("offset", [NO_OFFSET, np.array([0.7, -0.7], dtype=np.float32)])
def test_onnx_runtime_trains_as_the_formulas_do(tmp_path: Path, offset: NDArray[np.float32], proximal: float) -> None:
    recipe = Recipe(learning_rate=0.05, batch_size=8, epochs=4, max_tokens=16, proximal=proximal)
    job = logistic_graph.training_job(tmp_path, recipe=recipe)
    losses, updates = {}, {}
    for runtime in (OnnxRuntime(job, offset), NumpyRuntime(job, offset)):
        seen = losses[type(runtime)] = []
        result = train(runtime, examples_of(job), job, seen.append)
        updates[type(runtime)] = read_tensors(Path(job.update).read_bytes())
        assert (result.samples, result.steps) == (40, 20)
        assert (result.loss_first, result.loss_last) == (seen[0].loss, seen[-1].loss)
    np.testing.assert_allclose(*[[event.loss for event in seen] for seen in losses.values()], rtol=1e-5)
    ours, reference = updates.values()
    assert set(ours) == {"classifier.weight", "classifier.bias"}
    for name, delta in ours.items():
        np.testing.assert_allclose(delta, reference[name], rtol=1e-4, atol=1e-6)


def test_onnx_runtime_trains_the_same_on_rows_of_a_table(tmp_path: Path) -> None:
    results = []
    for by_rows in (False, True):
        job = logistic_graph.training_job(tmp_path)
        Path(job.graph).write_bytes(logistic_graph.training_graph(by_rows=by_rows).SerializeToString())
        train(OnnxRuntime(job, NO_OFFSET), examples_of(job), job, lambda _: None)
        results.append(Path(job.update).read_bytes())
    assert results[0] == results[1]


def test_onnx_runtime_learns(tmp_path: Path) -> None:
    recipe = Recipe(learning_rate=0.1, batch_size=8, epochs=10, max_tokens=16)
    job = logistic_graph.training_job(tmp_path, recipe=recipe)
    seen: list[Progress] = []
    train(OnnxRuntime(job, NO_OFFSET), examples_of(job), job, seen.append)
    losses = [event.loss for event in seen]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_onnx_runtime_leaves_the_blobs_as_they_were(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    before = [Path(name).read_bytes() for name in (job.weights, job.frozen)]
    train(OnnxRuntime(job, NO_OFFSET), examples_of(job), job, lambda _: None)
    assert [Path(name).read_bytes() for name in (job.weights, job.frozen)] == before


def test_onnx_runtime_refuses_a_graph_without_a_gradient(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    graph = logistic_graph.training_graph({"grad.classifier.bias": "grad.other"})
    Path(job.graph).write_bytes(graph.SerializeToString())
    with pytest.raises(ModelFormatError, match=r"lacks outputs \['grad.classifier.bias'\]"):
        OnnxRuntime(job, NO_OFFSET)


def test_onnx_runtime_refuses_a_graph_with_an_unknown_input(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    with Path(job.frozen).open("wb") as file:
        write_tensors(file, {})
    with pytest.raises(ModelFormatError, match=r"needs inputs \['embedding.weight'\]"):
        OnnxRuntime(job, NO_OFFSET)


def test_onnx_runtime_refuses_bytes_that_are_no_graph(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    Path(job.graph).write_bytes(b"not a graph")
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        OnnxRuntime(job, NO_OFFSET)


def test_onnx_runtime_refuses_weights_cut_short(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    Path(job.weights).write_bytes(Path(job.weights).read_bytes()[:-4])
    with pytest.raises(TensorTableError):
        OnnxRuntime(job, NO_OFFSET)


def test_onnx_runtime_refuses_a_gradient_of_another_shape(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    swapped = {"grad.classifier.bias": "grad.classifier.weight", "grad.classifier.weight": "grad.classifier.bias"}
    Path(job.graph).write_bytes(logistic_graph.training_graph(swapped).SerializeToString())
    with pytest.raises(ModelFormatError, match=r"of \(2,\) a gradient of \(2, 3\)"):
        train(OnnxRuntime(job, NO_OFFSET), examples_of(job), job, lambda _: None)


def test_onnx_runtime_reports_a_failing_step(tmp_path: Path) -> None:
    runtime = OnnxRuntime(logistic_graph.training_job(tmp_path), NO_OFFSET)
    ids = np.full((1, 2), len(WORDS), dtype=np.int64)
    with pytest.raises(TrainingError, match="training step failed"):
        runtime.accumulate(
            Batch({"input_ids": ids, "attention_mask": np.ones_like(ids)}, np.eye(1, 2, dtype=np.float32)), 1.0
        )


def test_training_with_infinite_weights_is_an_error(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    values = {name: array for name, array in logistic_graph.parameters(1).items() if name.startswith("classifier")}
    values["classifier.bias"][0] = math.inf
    with Path(job.weights).open("wb") as file:
        write_tensors(file, values)
    with pytest.raises(TrainingError, match=r"the loss is .* at step 1"):
        train(OnnxRuntime(job, NO_OFFSET), examples_of(job), job, lambda _: None)
    assert not Path(job.update).exists()


def test_update_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    recipe = Recipe(learning_rate=0.01, batch_size=64, epochs=1, max_tokens=16)
    job = msgspec.structs.replace(logistic_graph.training_job(tmp_path), recipe=recipe)
    runtime = OnnxRuntime(job, NO_OFFSET)
    runtime._flat[0] = math.nan
    with pytest.raises(TrainingError, match=r"made classifier.* not finite"):
        runtime.finish()


def test_update_to_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read or written"):
        write_whole(tmp_path / "none" / "update", {"a": np.zeros(1, dtype=np.float32)})
