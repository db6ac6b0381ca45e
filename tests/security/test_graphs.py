"""A graph that a coordinator sends reads no file of the device, and runs no code of its own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edge_sdk import sessions
from edge_sdk.errors import ModelFormatError
from edge_sdk.inference.engine import Engine
from edge_sdk.sessions import FAILURES, open_session, session_options
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.onnx_runtime import OnnxRuntime
from tests.security import attacks
from tests.support.logistic_graph import training_graph, training_job

SECRET = b"twelve bytes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a blob, with a file of the device's beside it and above it, and a link to another."""
    blobs = tmp_path / "state" / "blobs"
    blobs.mkdir(parents=True)
    for file in (blobs / "beside", blobs.parent / "examples.jsonl"):
        file.write_bytes(SECRET)
    (blobs / "link").symlink_to("../examples.jsonl")
    return blobs


LOCATIONS = ("../examples.jsonl", "/etc/passwd", "beside", "link", "./beside", "*/_ORT_MEM_ADDR_/*", "")


@pytest.mark.parametrize("in_node", [False, True])
@pytest.mark.parametrize("location", LOCATIONS)
def test_graph_with_weights_in_another_file_is_refused(folder: Path, location: str, in_node: bool) -> None:
    blob = folder / "blob"
    blob.write_bytes(attacks.onnx_with_file(location, in_node=in_node))
    with pytest.raises(ModelFormatError, match=r"blob needs files beside it \(location\)"):
        open_session(str(blob), session_options(1), [])


def test_graph_would_read_a_file_beside_it_if_it_were_let(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    blob = folder / "blob"
    blob.write_bytes(attacks.onnx_with_file("beside"))
    monkeypatch.setattr(sessions, "_refuse_files", lambda _: None)
    session = open_session(str(blob), session_options(1), [])
    (read,) = session.run(["y"], {"x": [0] * 12})
    assert bytes(read) == SECRET


@pytest.mark.parametrize("number", [b"\x8a\x00", b"\x8a\x80\x80\x00"])
@pytest.mark.parametrize("length", [b"\x08", b"\x88\x00"])
def test_idle_bytes_hide_no_file(folder: Path, number: bytes, length: bytes) -> None:
    """What protobuf reads as the same: numbers written longer than they need be."""
    entry = onnx.StringStringEntryProto.FromString(number + length + b"location" + b"\x12\x06beside")
    assert (entry.key, entry.value) == ("location", "beside")
    blob = folder / "blob"
    blob.write_bytes(b"\x00" * 40 + number + length + b"location")
    with pytest.raises(ModelFormatError, match="needs files beside it"):
        open_session(str(blob), session_options(1), [])


def test_graph_that_is_an_engine_compiled_elsewhere_is_refused(folder: Path) -> None:
    (folder / "blob").write_bytes(attacks.onnx_compiled_elsewhere())
    with pytest.raises(ModelFormatError, match=r"needs files beside it \(EPContext\)"):
        open_session(str(folder / "blob"), session_options(1), [])


def test_graph_of_operators_of_its_own_is_not_run(folder: Path) -> None:
    (folder / "blob").write_bytes(attacks.onnx_of_another_domain())
    with pytest.raises(FAILURES, match="evil"):
        open_session(str(folder / "blob"), session_options(1), [])


def test_neither_training_nor_inference_loads_such_a_graph(tmp_path: Path) -> None:
    job: TrainingJob = training_job(tmp_path)
    Path(job.graph).write_bytes(attacks.onnx_with_file("weights"))
    with pytest.raises(ModelFormatError, match="needs files beside it"):
        OnnxRuntime(job, 0)
    with pytest.raises(ModelFormatError, match="needs files beside it"):
        Engine(Path(job.graph), b"", ("a",), 8)


def test_graph_in_which_something_is_called_so_is_loaded(tmp_path: Path) -> None:
    graph = training_graph({"masked": "locations", "classifier.bias": "my.location", "mask3": "EPContexts"})
    graph.graph.doc_string = "EPContext, location"
    (tmp_path / "blob").write_bytes(graph.SerializeToString())
    session = open_session(str(tmp_path / "blob"), session_options(1), [])
    assert "my.location" in {given.name for given in session.get_inputs()}
