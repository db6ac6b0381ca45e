from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from coordinator.local import TaskFailedError, local_coordinator
from coordinator.processes import ProcessDiedError
from edge_sdk.data import write_examples
from edge_sdk.errors import ConfigurationError, DeadlineError
from edge_sdk.transport.address import BrokerAddress
from tests.support.broker import listens
from tests.support.small_fleet import some_examples


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_local_coordinator_says_what_fails_and_ends_what_it_started(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {child.pid for child in children()}
    with local_coordinator(tmp_path) as server:
        assert listens(BrokerAddress.parse(server.broker))
        assert len({child.pid for child in children()} - before) == 2
        assert server.root.is_file()
        with pytest.raises(subprocess.CalledProcessError):
            server.command("model", "save", "news", tmp_path / "saved")
        assert "there is no task 'news'; the tasks are none" in capfd.readouterr().err
        give_up_s = time.monotonic() + 30
        while f"serving fleet default at {server.broker}" not in server.log.read_text():
            assert time.monotonic() < give_up_s, "it says that it is there, before there is a device or a task"
            time.sleep(0.1)
    assert {child.pid for child in children()} <= before
    assert not listens(BrokerAddress.parse(server.broker))


@pytest.mark.long
def test_wait_for_a_task_that_cannot_end_well_says_why(tmp_path: Path, small_model: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((small_model / "config.json").read_bytes())  # and no weights
    data = write_examples(tmp_path / "data", some_examples(12, seed=0))
    words = ("--model", model, "--calibration", data, "--test", data)
    with local_coordinator(tmp_path / "fleet") as server:
        with pytest.raises(ConfigurationError, match="there is no task 'news'; the tasks are none"):
            server.wait_for("news")
        server.command("task", "create", "news", *words)
        with pytest.raises(DeadlineError, match="task news is not done after 0 s"):
            server.wait_for("news", timeout_s=0)
        with pytest.raises(TaskFailedError, match="task news failed: "):
            server.wait_for("news")


def test_wait_for_a_coordinator_that_has_died_says_so(tmp_path: Path) -> None:
    before = {child.pid for child in children()}
    with local_coordinator(tmp_path) as server:
        for child in children():
            if child.pid not in before and "serve" in child.cmdline():
                os.kill(child.pid, signal.SIGKILL)
                while child.status() != psutil.STATUS_ZOMBIE:  # not yet reaped: that is the parent's business
                    time.sleep(0.01)
        with pytest.raises(ProcessDiedError, match="coordinator ended with exit code -9"):
            server.wait_for("news")
