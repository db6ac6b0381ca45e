"""One agent that takes part in several tasks: each has its own examples and its own model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.config import AgentConfig
from edge_sdk.errors import ConfigurationError, ModelFormatError
from edge_sdk.protocol.messages import Declined, Failure, Ready, ReleaseReport
from edge_sdk.tasks import OwnTasks
from tests.support.logistic_graph import examples
from tests.support.lone_device import TASK, LoneDevice

SOME = examples(20, seed=1)
MAIL = list(zip(SOME.texts, SOME.labels, strict=True))


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
        device.supervisor._outbox.set_number("release", 9)
        assert device.supervisor._installed("any other task") == 9


def test_task_has_to_be_named_where_there_are_several(tmp_path: Path) -> None:
    tasks = OwnTasks({"news": MAIL, "notes": MAIL}, AgentConfig(device="d", broker="", state_dir=tmp_path))
    with pytest.raises(ConfigurationError, match="no task None; known are news, notes"):
        tasks.chosen(None)
    with pytest.raises(ConfigurationError, match="no task 'new'; did you mean news"):
        tasks.chosen("new")


def test_one_task_may_go_by_any_name(tmp_path: Path) -> None:
    tasks = OwnTasks(MAIL, AgentConfig(device="d", broker="", state_dir=tmp_path))
    assert tasks.ready() == ()
    assert tasks.of("whatever") is tasks.chosen(None)


@pytest.mark.parametrize("name", ["../up", "Upper", ""])
def test_name_of_a_task_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="task"):
        OwnTasks({name: MAIL}, AgentConfig(device="d", broker="", state_dir=tmp_path))
