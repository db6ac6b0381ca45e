from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.data import TextExamples
from edge_sdk.errors import ModelFormatError
from edge_sdk.inference.engine import Engine
from tests.support import logistic_graph
from tests.support.logistic_graph import LABELS, WORDS, tokenizer_json

# positive words one way along the first axis, negative words the other way
_GOOD, _BAD, _NEITHER = [1, 0, 0], [-1, 0, 0], [0, 0, 0]
VALUES = {
    "embedding.weight": np.array([[0, 9, 9]] * 2 + [_GOOD] * 2 + [_BAD] * 2 + [_NEITHER] * 2, dtype=np.float32),
    "classifier.weight": np.array([[-2, 0, 0], [2, 0, 0]], dtype=np.float32),
    "classifier.bias": np.zeros(2, dtype=np.float32),
}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    (tmp_path / "model.onnx").write_bytes(logistic_graph.inference_model(VALUES).SerializeToString())
    return Engine(tmp_path / "model.onnx", tokenizer_json(), LABELS, max_tokens=8)


def test_engine_predicts_the_label_and_its_probability(engine: Engine) -> None:
    good, bad = engine.predict(["good film", "the awful bad film"])
    assert (good.label, bad.label) == ("positive", "negative")
    assert good.probability == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-5)


def test_engine_predicts_a_text_alike_alone_and_among_longer_ones(engine: Engine) -> None:
    texts = ["good", "the film the film bad", *(f"{word} good" for word in WORDS[2:] * 6)]
    together = engine.predict(texts)
    assert [prediction.label for prediction in together] == [engine.predict([text])[0].label for text in texts]
    assert together[0].probability == pytest.approx(engine.predict(["good"])[0].probability, rel=1e-6)


def test_engine_predicts_nothing_for_no_text(engine: Engine) -> None:
    assert engine.predict([]) == []


def test_engine_measures_accuracy_and_latency(engine: Engine) -> None:
    examples = TextExamples(("good", "bad", "fine", "awful"), ("positive", "negative", "positive", "positive"))
    measured = engine.measure(examples)
    assert (measured.samples, measured.accuracy) == (4, 0.75)
    assert 0 < measured.latency_ms < 1000


@pytest.mark.usefixtures("engine")
def test_engine_refuses_a_model_with_other_labels(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="2 logits for 3 labels"):
        Engine(tmp_path / "model.onnx", tokenizer_json(), ("a", "b", "c"), 8).predict(["good"])


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_engine_refuses_what_is_no_model(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        Engine(tmp_path / "bad.onnx", tokenizer_json(), LABELS, 8)


def test_engine_module_loads_without_onnxruntime() -> None:
    script = "import sys, edge_sdk.inference.engine; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
