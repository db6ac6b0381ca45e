"""`edge-agent predict` takes what the running model takes; each model here has the mean of a channel as its logit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.elastic.submodel import ModelTask, Submodel
from edge_sdk.errors import ConfigurationError, DataFormatError
from edge_sdk.inference.serving import Serving
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.releases import ReleasedModel
from tests.support.logistic_graph import LABELS, WORDS, inference_model, parameters, tokenizer_json
from tests.support.signed import installed, order_of
from tests.support.table_model import table_model

STEPS = 4


def mean_model(name: str, shape: list[int], axes: list[int]) -> bytes:
    node = helper.make_node("ReduceMean", [name, "axes"], ["logits"], keepdims=0)
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "mean", [given], [logits], [numpy_helper.from_array(np.array(axes), "axes")])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


PARTS = {
    "texts": ({Part.INFERENCE_MODEL: inference_model(parameters(1)).SerializeToString()}, LABELS),
    "windows": ({Part.INFERENCE_MODEL: mean_model("series", [STEPS, 2], [1])}, ("first", "second")),
    "images": ({Part.INFERENCE_MODEL: mean_model("pixel_values", [3, 8, 8], [2, 3])}, ("red", "green", "blue")),
}
TAGGED = np.array([[0, 1], [1, 0]])[[0, 0, 0, 0, 1, 1, 0, 0]]  # bad and awful are negative
FOLLOWING = np.eye(len(WORDS))[[WORDS.index("film")] * len(WORDS)]
PARTS["words"] = ({Part.INFERENCE_MODEL: table_model(ModelTask.TOKEN_CLASSIFICATION, TAGGED)}, LABELS)
PARTS["openings"] = ({Part.INFERENCE_MODEL: table_model(ModelTask.TEXT_GENERATION, FOLLOWING)}, ())
for kind in ("texts", "words", "openings"):
    PARTS[kind][0][Part.TOKENIZER] = tokenizer_json()


@pytest.fixture
def state(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The state of a device that runs the model for ``request.param``."""
    parts, labels = PARTS[request.param]
    files = {}
    for part, data in parts.items():
        files[part] = tmp_path / f"released-{part.value}"
        files[part].write_bytes(data)
    manifest = ReleasedModel(
        release=1,
        task="task",
        submodel=Submodel((0,), (1,), (1,)),
        labels=labels,
        max_tokens=8,
        manifest=tuple(BlobEntry(part=p, digest=digest_of(data), size_bytes=len(data)) for p, data in parts.items()),
    )
    report = installed(Serving(tmp_path / "state" / "slots", threads=1), order_of(manifest), files)
    assert report.healthy, report
    return tmp_path / "state"


def predict(state: Path, *words: object) -> list[dict[str, object]]:
    """What the command prints, by line."""
    told = ["predict", *map(str, words), "--device", "d", "--state-dir", str(state), "--json"]
    done = CliRunner().invoke(app, told)
    if done.exception is not None:
        raise done.exception
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("state", ["words"], indirect=True)
def test_words_of_a_text_are_tagged_each(state: Path) -> None:
    answers = predict(state, "the bad film", "fine")
    told = [("the", "positive"), ("bad", "negative"), ("film", "positive"), ("fine", "positive")]
    assert [(answer["word"], answer["label"]) for answer in answers] == told


@pytest.mark.parametrize("state", ["openings"], indirect=True)
def test_texts_are_continued(state: Path) -> None:
    (answer,) = predict(state, "the fine", "--max-new-tokens", 3)
    assert answer == {"text": "the fine", "answer": " film film film"}


@pytest.mark.parametrize("state", ["texts"], indirect=True)
def test_texts_are_asked_as_they_are(state: Path) -> None:
    answers = predict(state, "good film", "awful.csv")
    assert [answer["text"] for answer in answers] == ["good film", "awful.csv"]
    assert {answer["label"] for answer in answers} <= {*LABELS}


@pytest.mark.parametrize("state", ["texts"], indirect=True)
def test_device_is_taken_from_a_file_or_the_environment(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(f'device = "d"\nstate_dir = "{state}"\n')
    assert CliRunner().invoke(app, ["predict", "good film", "--config", str(file)]).exit_code == 0
    with pytest.raises(ConfigurationError, match="device is not given: use --device, RAFFM_EDGE_DEVICE"):
        CliRunner().invoke(app, ["predict", "good film"], catch_exceptions=False)
    monkeypatch.setenv("RAFFM_EDGE_STATE_DIR", str(state))
    assert CliRunner().invoke(app, ["predict", "good film"]).exit_code == 0


@pytest.mark.parametrize("state", ["windows"], indirect=True)
def test_windows_are_read_from_npy_and_csv(state: Path, tmp_path: Path) -> None:
    windows = np.zeros((3, STEPS, 2), dtype=np.float32)
    windows[[0, 1, 2], 0, [0, 1, 1]] = 4
    many, one, table = tmp_path / "many.npy", tmp_path / "one.npy", tmp_path / "table.csv"
    np.save(many, windows.astype(np.float64))
    np.save(one, windows[2])
    np.savetxt(table, windows[1:].reshape(-1, 2), delimiter=",", header="x,y", comments="")
    answers = predict(state, many, one, table)
    assert [answer["label"] for answer in answers] == ["first", "second", "second", "second", "second", "second"]
    assert [answer["window"] for answer in answers][2:5] == [f"{many} 3", f"{one} 1", f"{table} 1"]


@pytest.mark.parametrize("state", ["windows"], indirect=True)
def test_file_whose_name_is_not_utf_8_is_shown_as_well_as_it_can_be(state: Path, tmp_path: Path) -> None:
    with (tmp_path / os.fsdecode(b"caf\xe9.npy")).open("wb") as file:
        np.save(file, np.zeros((1, STEPS, 2), dtype=np.float32))
    (answer,) = predict(state, file.name)
    assert answer["window"] == f"{tmp_path}/caf?.npy 1"
    told = ["predict", file.name, "--device", "d", "--state-dir", str(state)]
    assert CliRunner().invoke(app, told).stdout.endswith("caf?.npy 1\n")


@pytest.mark.beyond_base
@pytest.mark.parametrize("state", ["images"], indirect=True)
def test_pictures_are_read_from_their_files(state: Path, tmp_path: Path) -> None:
    from PIL import Image

    files = [tmp_path / "leaf.png", tmp_path / "sky.jpg"]
    for file, colour in zip(files, [(10, 200, 30), (10, 30, 200)], strict=True):
        Image.new("RGB", (40, 20), colour).save(file)
    answers = predict(state, *files)
    assert [(answer["image"], answer["label"]) for answer in answers] == [
        (str(files[0]), "green"),
        (str(files[1]), "blue"),
    ]


@pytest.mark.parametrize(
    ("state", "name", "content", "said"),
    [
        ("windows", "none.npy", None, "none.npy' is no file; this device's model takes windows"),
        ("windows", "some.txt", b"1,2", "is no .npy or .csv file; this device's model takes windows"),
        ("windows", "broken.npy", b"no array", "cannot be read .*numpy.save"),
        ("windows", "empty.csv", b"", "has 0 rows, which are no windows"),
        ("windows", "words.csv", b"x,y\n1,two\n", "cannot be read as rows of numbers, one column per channel"),
        ("windows", "short.csv", b"1,2\n" * 5, "has 5 rows, which are no windows of the model's 4 steps"),
        ("windows", "wide.csv", b"1,2,3\n" * 4, "windows of 4 x 3 .* a model of 4 x 2"),
        ("windows", "lost.csv", b"1,nan\n" * 4, "needs finite floats"),
        ("images", "a red thing", None, "'a red thing' is no file; this device's model takes pictures"),
    ],
    indirect=["state"],
)
def test_what_the_model_does_not_take_is_refused_in_one_line(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(DataFormatError, match=said) as refused:
        predict(state, name)
    assert "\n" not in str(refused.value)
