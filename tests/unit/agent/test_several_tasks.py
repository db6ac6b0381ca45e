"""One agent that takes part in several tasks: each has its own examples and its own model."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

from edge_sdk.agent.tasks import OwnTasks, folder_with
from edge_sdk.cli import app
from edge_sdk.config import AgentConfig
from edge_sdk.elastic.runtimes import COSTS, Runtime
from edge_sdk.errors import ConfigurationError, DataFormatError, ModelFormatError
from edge_sdk.protocol.messages import (
    MAX_TASKS,
    Declined,
    Failure,
    Ready,
    ReleaseReport,
    Snapshot,
    decode_from_device,
    encode,
)
from tests.support.logistic_graph import examples
from tests.support.lone_device import TASK, LoneDevice

SOME = examples(20, seed=1)
MAIL = list(zip(SOME.texts, SOME.labels, strict=True))
SNAPSHOT = Snapshot(
    memory_total_bytes=1, memory_available_bytes=1, training_memory_bytes=1, inference_memory_bytes=1, threads=1
)


def config_in(state_dir: Path) -> AgentConfig:
    return AgentConfig(device="d", broker="mqtt://127.0.0.1", state_dir=state_dir)


def test_agent_asks_for_the_tasks_that_it_has_examples_for_and_serves_each(tmp_path: Path) -> None:
    with LoneDevice(tmp_path, {TASK: MAIL, "other": []}) as device:
        device.run_until(lambda: device.heard(ReleaseReport))
        tasks = device.supervisor.tasks
        assert {*tasks_of(device)} == {(TASK,)}
        assert tasks.chosen(TASK).serving.predict(["good film"])[0].label
        with pytest.raises(ModelFormatError, match="no model yet"):
            tasks.chosen("other").serving.predict(["good film"])
        tasks.chosen("other").examples.learn(("the first", "negative"))
        tasks.chosen("other").examples.learn(("the second", "positive"))
        device.run_until(lambda: tasks_of(device)[-1] == (TASK, "other"))
    assert (device.state_dir / "tasks" / TASK / "slots").is_dir()


def tasks_of(device: LoneDevice) -> list[tuple[str, ...]]:
    return [message.tasks for message in device.heard(Ready) if isinstance(message, Ready)]


def test_offer_of_a_task_that_the_agent_has_not_is_declined(tmp_path: Path) -> None:
    with LoneDevice(tmp_path, {"other": MAIL}) as device:
        device.run_until(lambda: device.heard(Declined))
    declined = device.heard(Declined)[0]
    assert isinstance(declined, Declined)
    assert declined.failure is Failure.EXAMPLES


def test_release_of_a_task_that_the_agent_has_not_is_refused(tmp_path: Path) -> None:
    with LoneDevice(tmp_path, {"other": MAIL}, releases_first=True) as device:
        device.run_until(lambda: device.heard(ReleaseReport))
    report = device.heard(ReleaseReport)[0]
    assert isinstance(report, ReleaseReport)
    assert (report.healthy, report.detail) == (False, f"this device takes no part in {TASK}")


def test_release_of_an_earlier_task_does_not_come_back_to_a_device_of_one_task(tmp_path: Path) -> None:
    with LoneDevice(tmp_path, MAIL) as device:
        device.run_until(lambda: device.heard(ReleaseReport))
        assert device.supervisor._releases._trust.newest("any other task") == 1


def test_task_has_to_be_named_where_there_are_several(tmp_path: Path) -> None:
    tasks = OwnTasks({"news": MAIL, "notes": MAIL}, config_in(tmp_path))
    with pytest.raises(ConfigurationError, match="no task None; known are news, notes"):
        tasks.chosen(None)
    with pytest.raises(ConfigurationError, match="no task 'new'; did you mean news"):
        tasks.chosen("new")


def test_models_of_several_tasks_share_the_memory_for_inference_and_what_a_process_takes_is_there_once(
    tmp_path: Path,
) -> None:
    base = COSTS[Runtime.ONNX].inference_bytes
    one = OwnTasks(MAIL, config_in(tmp_path / "one"))
    three = OwnTasks(dict.fromkeys(("a", "b", "c"), MAIL), config_in(tmp_path / "three"))
    assert one.share_bytes(base + 90) == base + 90
    assert three.share_bytes(base + 90) == base + 30
    assert three.share_bytes(base - 90) == base - 90  # too little for any model, and nothing to share


def test_one_task_may_go_by_any_name(tmp_path: Path) -> None:
    tasks = OwnTasks(MAIL, config_in(tmp_path))
    ready = tasks.ready(SNAPSHOT)
    assert ready is not None
    assert (ready.tasks, ready.holding_for("whatever")) == ((), ready.holdings[0])
    assert tasks.of("whatever") is tasks.chosen(None)


def test_command_asks_the_model_of_the_one_task_by_any_name_and_of_several_by_theirs(tmp_path: Path) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    OwnTasks(MAIL, AgentConfig(device="d", broker="mqtt://127.0.0.1", state_dir=one))
    OwnTasks({"news": MAIL, "notes": MAIL}, AgentConfig(device="d", broker="mqtt://127.0.0.1", state_dir=several))
    assert folder_with(one, "whatever") == folder_with(one, None) == one
    assert folder_with(several, "news") == several / "tasks" / "news"


def test_asking_for_a_prediction_makes_no_folder(tmp_path: Path) -> None:
    words = ["predict", "good film", "--device", "d", "--state-dir", str(tmp_path / "state"), "--task", "news"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ModelFormatError)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("name", ["../up", "Upper", ""])
def test_name_of_a_task_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="task"):
        OwnTasks({name: MAIL}, config_in(tmp_path))


@pytest.mark.parametrize("count", [0, MAX_TASKS + 1])
def test_no_task_and_more_than_a_message_can_name_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(ConfigurationError, match=f"examples has {count} tasks; give 1 to 32"):
        OwnTasks({f"task-{number}": () for number in range(count)}, config_in(tmp_path))


def test_most_tasks_that_are_taken_can_be_asked_for(tmp_path: Path) -> None:
    names = tuple(f"{number:064}" for number in range(MAX_TASKS))
    ready = OwnTasks(dict.fromkeys(names, MAIL[:1]), config_in(tmp_path)).ready(SNAPSHOT)
    assert ready is not None
    assert decode_from_device(encode(ready)) == ready
    assert ready.tasks == names


def test_name_of_a_task_that_is_no_text_is_refused_by_its_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="examples is a dict with a key of type int, and a dict names tasks"):
        OwnTasks({1: MAIL}, config_in(tmp_path))
    assert not (tmp_path / "tasks").exists()


@pytest.mark.parametrize("columns", [("text", "label"), ("id", "source", "target")])
def test_columns_are_not_taken_for_tasks(tmp_path: Path, columns: tuple[str, ...]) -> None:
    with pytest.raises(DataFormatError, match=f"a dict of the columns {', '.join(columns)}, and a dict names tasks"):
        OwnTasks({name: ["a", "b"] for name in columns}, config_in(tmp_path))
    assert not (tmp_path / "tasks").exists()


def test_splits_of_a_dataset_are_not_taken_for_tasks(tmp_path: Path) -> None:
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(DataFormatError, match=r"the DatasetDict cannot be used as examples; .* \(one split of it\)"):
        OwnTasks(splits, config_in(tmp_path))
