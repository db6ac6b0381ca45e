from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.elastic.submodel import Architecture, Submodel
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.training.data import Batch
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.nested import NestedPrefix
from edge_sdk.training.onnx_runtime import OnnxRuntime
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
NESTED = Submodel((0,), (2,), (2,))
BATCH = Batch(np.array([[2, 3], [4, 6]]), np.array([[1, 1], [1, 0]]), np.array([1, 0]))


def nested_job(folder: Path, nested: Submodel | None) -> TrainingJob:
    job = logistic_graph.training_job(folder, architecture=ARCHITECTURE, nested=nested)
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
        self.weight, self.bias = (gradient.copy() for gradient in gradients)


def gradients_of(folder: Path, nested: Submodel | None) -> RecordingOptimizer:
    runtime = OnnxRuntime(nested_job(folder, nested), np.zeros(2, dtype=np.float32))
    optimizer = RecordingOptimizer()
    runtime._optimizer = optimizer  # type: ignore[assignment]
    runtime.step(BATCH)
    return optimizer


def formula(width: int) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of weight and bias of the classifier that sees the first ``width`` axes."""
    values = {name: array.astype(np.float64) for name, array in logistic_graph.parameters(1).items()}
    mask = BATCH.attention_mask[..., None]
    pooled = ((values["embedding.weight"][BATCH.input_ids] * mask).sum(1) / mask.sum(1))[:, :width]
    logits = pooled @ values["classifier.weight"][:, :width].T + values["classifier.bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p[[0, 1], BATCH.labels] -= 1
    return p.T @ pooled / 2, p.mean(0)


def test_nested_step_sums_the_gradients_of_both_widths(tmp_path: Path) -> None:
    expected, expected_bias = formula(HIDDEN)
    inner, inner_bias = formula(2)
    alone, together = gradients_of(tmp_path, None), gradients_of(tmp_path, NESTED)
    np.testing.assert_allclose(alone.weight.reshape(2, HIDDEN), expected, rtol=1e-5, atol=1e-7)
    expected[:, :2] += inner
    np.testing.assert_allclose(together.weight.reshape(2, HIDDEN), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(together.bias, expected_bias + inner_bias, rtol=1e-5, atol=1e-7)


def test_nested_step_follows_the_weights_as_they_change(tmp_path: Path) -> None:
    runtime = OnnxRuntime(nested_job(tmp_path, NESTED), np.zeros(2, dtype=np.float32))
    for _ in range(3):
        runtime.step(BATCH)
    name = NAMES["classifier.weight"]
    before = runtime._weights[name].copy()
    runtime.step(BATCH)
    assert runtime._nested is not None
    np.testing.assert_array_equal(runtime._nested.values[name], before[:, :2])


@pytest.mark.parametrize("nested", [Submodel((1,), (1,), (1,)), Submodel((0,), (3,), (1,))])
def test_nested_that_is_no_prefix_is_refused(nested: Submodel) -> None:
    architecture = Architecture("bert", 2, 4, 1, 4, 4, 8, 16, 2)
    trained = {f"{LAYER}attention.self.query.weight": np.zeros((2, 4), dtype=np.float32)}
    with pytest.raises(ConfigurationError, match="no prefix"):
        NestedPrefix(nested, architecture, trained)
