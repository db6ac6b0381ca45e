"""What a coordinator's commands make of a folder, a name or a number that was mistyped."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.cli import app
from edge_sdk.errors import ConfigurationError
from tests.support.new_store import new_store

NUMBER = str(2**63)


@pytest.mark.parametrize(
    "words",
    [
        "audit",
        "device list",
        "device revoke pi",
        "release list",
        "rollout pause 1",
        "round list",
        "store move sqlite:///other.sqlite",
        "task list",
        "task stop news",
        "token create ann",
    ],
)
def test_folder_that_is_not_there_is_no_empty_fleet(tmp_path: Path, words: str) -> None:
    """It was made, with an empty store in it, and the command said that there is nothing yet."""
    folder = tmp_path / "mistyped"
    done = CliRunner().invoke(app, [*words.split(), "--state-dir", str(folder)])
    assert isinstance(done.exception, ConfigurationError)
    assert str(folder) in str(done.exception)
    assert not folder.exists()


def test_rounds_of_an_unknown_task_are_not_none(tmp_path: Path) -> None:
    new_store(tmp_path).close()
    done = CliRunner().invoke(app, ["round", "list", "--task", "mistyped", "--state-dir", str(tmp_path)])
    assert str(done.exception) == "there is no task 'mistyped'; the tasks are none"


@pytest.mark.parametrize(
    "words",
    [
        f"audit --limit {NUMBER}",
        "broker --port 65536",
        f"model save news folder --version {NUMBER}",
        f"release approve {NUMBER}",
        f"release create news --version {NUMBER}",
        f"rollout pause {NUMBER}",
        f"rollout start {NUMBER} --stages 100%",
        "serve --threads 0",
    ],
)
def test_number_that_none_can_be_is_refused(tmp_path: Path, words: str) -> None:
    """Most ended with a traceback; a coordinator with no threads failed its tasks."""
    new_store(tmp_path).close()
    done = CliRunner().invoke(app, [*words.split(), "--state-dir", str(tmp_path)])
    assert done.exit_code == 2
    assert "is not in the range" in done.output
