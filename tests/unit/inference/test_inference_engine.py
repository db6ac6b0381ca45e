from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.data import ArrayExamples, Examples, PlainTexts, TaggedExamples, TextExamples
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import ConfigurationError, DataFormatError, ModelFormatError
from edge_sdk.inference.engine import Engine
from edge_sdk.inference.serving import Serving
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.releases import ReleasedModel
from tests.support import logistic_graph
from tests.support.logistic_graph import LABELS, WORDS, tokenizer_json
from tests.support.signed import installed, order_of

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


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("good film", "one str is given; give a list of texts"),
        (iter(["good"]), "one list_iterator is given; give a list of texts"),
        (None, "one NoneType is given"),
        (["good", 5], "number 2 of the texts or words that are given is no text"),
        (["half a pair \ud83d"], "number 1 of the texts or words"),
        (["good", " "], "number 2 of the texts has no token in this model; leave it out"),
    ],
)
def test_engine_is_asked_about_what_is_no_list_of_texts(engine: Engine, given: Any, complaint: str) -> None:
    with pytest.raises(DataFormatError, match=complaint):
        engine.predict(given)


def test_engine_reads_strings_of_other_types(engine: Engine) -> None:
    assert engine.predict(np.array(["good", "bad"]).tolist()) == engine.predict([*np.array(["good", "bad"])])


def test_engine_measures_accuracy_and_latency(engine: Engine) -> None:
    examples = TextExamples(("good", "bad", "fine", "awful"), ("positive", "negative", "positive", "positive"))
    measured = engine.measure(examples)
    assert (measured.samples, measured.accuracy) == (4, 0.75)
    assert 0 < measured.latency_ms < 1000


def model_of(node: onnx.NodeProto, given: tuple[str, int, list[object]], constant: np.ndarray) -> bytes:
    """A model of one node, whose last input is ``constant`` and whose output are the logits."""
    inputs = [helper.make_tensor_value_info(*given)]
    if given[0] == "input_ids":
        inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, given[2]))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", inputs, [logits], [numpy_helper.from_array(constant, "constant")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_engine_measures_and_predicts_windows(tmp_path: Path) -> None:
    """The mean of each channel is the logit of a label."""
    mean = helper.make_node("ReduceMean", ["series", "constant"], ["logits"], keepdims=0)
    given = ("series", TensorProto.FLOAT, ["batch", 4, 2])
    (tmp_path / "model.onnx").write_bytes(model_of(mean, given, np.array([1])))
    engine = Engine(tmp_path / "model.onnx", b"", ("first", "second"), max_tokens=8)
    engine.try_out()
    windows = np.zeros((3, 4, 2), dtype=np.float32)
    windows[[0, 1, 2], 0, [0, 1, 1]] = 4
    assert [prediction.label for prediction in engine.predict_arrays(windows)] == ["first", "second", "second"]
    assert engine.measure(ArrayExamples(windows, (0, 1, 0))).accuracy == pytest.approx(2 / 3)
    with pytest.raises(ConfigurationError, match="use predict with an array"):
        engine.predict(["good"])
    with pytest.raises(DataFormatError, match=r"windows of 5 x 2 .* a model of 4 x 2"):
        engine.predict_arrays(np.zeros((1, 5, 2), dtype=np.float32))
    for same in (windows.astype(np.float64), windows.astype(">f4"), windows.astype(np.float16)):
        assert engine.predict_arrays(same) == engine.predict_arrays(windows)
    assert engine.predict_arrays(windows[:0]) == []
    for wrong in (windows * np.nan, windows[0], windows.astype(int), np.float32(1).reshape(())):
        with pytest.raises(DataFormatError, match="it needs finite floats"):
            engine.predict_arrays(wrong)


@pytest.mark.parametrize(
    ("scaling", "label"),
    [({}, "red"), ({"pixel_mean": (0.6, 0.1, 0.1)}, "green"), ({"pixel_std": (0.9, 0.9, 0.01)}, "blue")],
)
def test_released_model_sees_pixels_as_it_did_in_training(
    tmp_path: Path, scaling: dict[str, tuple[float, ...]], label: str
) -> None:
    """The mean of each channel is the logit of a label; what is brightest depends on how pixels are scaled."""
    mean = helper.make_node("ReduceMean", ["pixel_values", "constant"], ["logits"], keepdims=0)
    model = model_of(mean, ("pixel_values", TensorProto.FLOAT, ["batch", 3, 2, 2]), np.array([2, 3]))
    file = tmp_path / "released"
    file.write_bytes(model)
    manifest = ReleasedModel(
        release=1,
        task="task",
        submodel=Submodel((0,), (1,), (4,)),
        labels=("red", "green", "blue"),
        max_tokens=8,
        manifest=(BlobEntry(part=Part.INFERENCE_MODEL, digest=digest_of(model), size_bytes=len(model)),),
        **scaling,
    )
    image = np.full((1, 2, 2, 3), (150, 140, 129), dtype=np.uint8)
    serving = Serving(tmp_path / "slots", threads=1)
    report = installed(serving, order_of(manifest), {Part.INFERENCE_MODEL: file}, ArrayExamples(image, (label,)))
    assert (report.healthy, report.accuracy) == (True, 1.0), report
    assert serving.predict(image)[0].label == label
    assert Serving(tmp_path / "slots", threads=1).predict(image)[0].label == label
    with pytest.raises(DataFormatError, match="uint8"):
        serving.predict((image / 255).astype(np.float32))


@pytest.mark.parametrize(
    ("labels", "examples", "accuracy"),
    [
        (LABELS, TaggedExamples((("good", "bad", "the"),), (("positive", "negative", "positive"),)), 2 / 3),
        ((), PlainTexts(("good film the bad",)), 1 / 3),
    ],
)
def test_engine_measures_by_token(tmp_path: Path, labels: tuple[str, ...], examples: Examples, accuracy: float) -> None:
    """Words say their own tag; as text, every word is followed by film."""
    table = np.array([[0, 0], [0, 0], *[[0, 1]] * 2, *[[1, 0]] * 4]) if labels else np.eye(8)[[7] * 8]
    gather = helper.make_node("Gather", ["constant", "input_ids"], ["logits"])
    model = model_of(gather, ("input_ids", TensorProto.INT64, ["batch", "tokens"]), table.astype(np.float32))
    (tmp_path / "model.onnx").write_bytes(model)
    engine = Engine(tmp_path / "model.onnx", tokenizer_json(), labels, max_tokens=8)
    measured = engine.measure(examples)
    assert (measured.samples, measured.accuracy) == (1, pytest.approx(accuracy))


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
