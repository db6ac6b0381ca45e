"""Which execution providers a session gets; of those that this onnxruntime has, Azure is one that leaves all work."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edge_sdk.inference.engine import Engine
from edge_sdk.sessions import FAILURES, open_session, providers_of, session_options
from edge_sdk.training.job import Finished, TrainingEvent
from edge_sdk.training.process import TrainingProcess
from tests.support import logistic_graph
from tests.support.logistic_graph import LABELS, inference_model, parameters, tokenizer_json

CPU, CUDA, AZURE = "CPUExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(inference_model(parameters(1)).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("wanted", "offered", "tried"),
    [
        (None, (CPU, AZURE), [CPU]),
        (None, (AZURE, CPU, CUDA), [CUDA, CPU]),
        ((), (CUDA, CPU), [CPU]),
        ((CPU,), (CUDA, CPU), [CPU]),
        ((CUDA, AZURE), (AZURE, CPU), [AZURE, CPU]),
        ((AZURE, CUDA), (CUDA, AZURE, CPU), [AZURE, CUDA, CPU]),
    ],
)
def test_providers_are_those_wanted_and_there_with_the_processor_last(
    wanted: tuple[str, ...] | None, offered: tuple[str, ...], tried: list[str]
) -> None:
    assert providers_of(wanted, offered) == tried


@pytest.mark.parametrize(("wanted", "got"), [(None, [CPU]), ((), [CPU]), ((AZURE,), [AZURE, CPU])])
def test_session_has_the_providers_that_are_wanted(
    model: Path, caplog: pytest.LogCaptureFixture, wanted: tuple[str, ...] | None, got: list[str]
) -> None:
    assert open_session(str(model), session_options(1), wanted).get_providers() == got
    assert not caplog.records


def test_session_without_a_provider_that_is_wanted_says_so_once_and_runs_on_the_processor(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_session(str(model), session_options(1), [CUDA, AZURE]).get_providers() == [AZURE, CPU]
    assert [record.getMessage() for record in caplog.records] == [
        "CUDAExecutionProvider is not in this onnxruntime; the model runs on the CPU instead"
    ]


@pytest.mark.filterwarnings("ignore:Specified provider")  # onnxruntime's own, since it has none of the two
@pytest.mark.parametrize(("broken", "why"), [(CUDA, "cannot be loaded"), ("NoneSuch", "fails: Unknown Provider Type")])
def test_session_with_a_provider_that_does_not_load_says_so_once_and_runs_on_the_processor(
    model: Path, caplog: pytest.LogCaptureFixture, broken: str, why: str
) -> None:
    session = open_session(str(model), session_options(1), [broken], offered=[broken, CPU])
    assert session.get_providers() == [CPU]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{broken} {why}")


def test_session_of_no_model_fails_on_the_processor_too(tmp_path: Path) -> None:
    with pytest.raises(FAILURES):
        open_session(str(tmp_path / "none.onnx"), session_options(1), None)


def test_engine_runs_on_the_providers_that_it_is_given(model: Path) -> None:
    engine = Engine(model, tokenizer_json(), LABELS, max_tokens=8, providers=[AZURE])
    assert engine._session.get_providers() == [AZURE, CPU]
    assert engine.predict(["good film"])[0].label in LABELS


def test_training_on_a_provider_that_is_not_there_goes_on_and_is_in_the_agents_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = logistic_graph.training_job(tmp_path, providers=(CUDA, AZURE))
    events: list[TrainingEvent] = []
    with caplog.at_level(logging.WARNING):
        assert TrainingProcess(job, events.append).wait(60)
    assert isinstance(events[-1], Finished), events[-1]
    assert [record.getMessage() for record in caplog.records if "Provider" in record.getMessage()] == [
        "CUDAExecutionProvider is not in this onnxruntime; the model runs on the CPU instead"
    ]
