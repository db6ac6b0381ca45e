"""An agent whose examples are still to come, or grow while it works."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edge_sdk.agent.decisions import Phase
from edge_sdk.protocol.messages import Declined, Failure, Ready, ReleaseReport, UpdateReady
from tests.support.logistic_graph import examples
from tests.support.lone_device import LoneDevice

SOME = examples(20, seed=1)
MAIL = list(zip(SOME.texts, SOME.labels, strict=True))


def test_agent_without_examples_serves_and_asks_for_work_once_there_are_some(tmp_path: Path) -> None:
    mail: list[tuple[str, str]] = []
    with LoneDevice(tmp_path, mail, releases_first=True) as device:
        device.run_until(lambda: device.heard(ReleaseReport))
        device.run_for(0.5)
        device.run_until(lambda: device.supervisor.status.waiting_for == "examples")
        assert device.supervisor.tasks.chosen(None).serving.predict(["good film"])[0].label
        assert not device.heard(Ready)
        (report,) = device.heard(ReleaseReport)
        assert isinstance(report, ReleaseReport)
        assert (report.healthy, report.samples, report.accuracy) == (True, 0, None)
        mail.extend(MAIL)
        device.run_until(lambda: device.heard(UpdateReady))
        assert not device.supervisor.status.waiting_for


def test_agent_without_examples_declines_an_offer_that_comes_all_the_same(tmp_path: Path) -> None:
    with LoneDevice(tmp_path, ()) as device:
        device.run_for(0.2)
        device.send(device.offer)
        device.run_until(lambda: device.heard(Declined))
        assert [declined.failure for declined in device.heard(Declined)] == [Failure.EXAMPLES]
        device.run_until(lambda: device.supervisor.status.waiting_for == "examples")


def test_status_says_how_far_training_is_only_while_there_is_any(tmp_path: Path) -> None:
    with LoneDevice(tmp_path, MAIL) as device:
        device.run_until(lambda: device.heard(UpdateReady))
        status = device.supervisor.status
        assert (status.phase, status.step, status.steps, status.loss) == (Phase.IDLE, None, None, None)


def test_training_takes_what_was_learnt_before_it_began(tmp_path: Path) -> None:
    with LoneDevice(tmp_path, MAIL) as device:
        device.supervisor.tasks.chosen(None).examples.learn(("the very first film", "negative"))
        device.run_until(lambda: device.heard(ReleaseReport))
        (report,) = device.heard(ReleaseReport)
        update = device.heard(UpdateReady)[-1]
        assert isinstance(report, ReleaseReport)
        assert isinstance(update, UpdateReady)
        assert update.report.samples + report.samples == len(MAIL) + 1


def test_file_gone_bad_costs_only_what_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in MAIL))
    with caplog.at_level(logging.WARNING), LoneDevice(tmp_path, data) as device:
        data.write_text("text,label\nhalf a li")
        device.run_until(lambda: device.heard(UpdateReady))
    assert "the examples are not updated" in caplog.text


def test_says_when_it_is_connected_and_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a coordinator nothing else is heard for as long as there is none."""
    with caplog.at_level(logging.INFO), LoneDevice(tmp_path, MAIL) as device:
        device.run_until(lambda: device.supervisor.status.connected)
    assert "connected to mqtt://127.0.0.1, fleet default" in caplog.text
