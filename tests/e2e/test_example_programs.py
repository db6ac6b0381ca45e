"""Every example does what its docstring says, ends by itself and leaves nothing behind."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from coordinator.demo.inputs import write_examples
from tests.support.small_fleet import LABELS, SmallFleet, some_examples

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, template_cache: dict[str, str]) -> Run:
    """Runs an example with these words to its end; what it printed."""
    own = tmp_path / "example"
    own.mkdir()
    folders = template_cache | {"TMPDIR": str(own), "XDG_STATE_HOME": str(own)}

    def to_its_end(number: str, *words: str) -> str:
        (example,) = FOLDER.glob(f"{number}_*.py")
        done = subprocess.run(
            [sys.executable, str(example), *words],
            env=os.environ | folders,
            capture_output=True,
            text=True,
            timeout=550,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not processes_in(own)
        return done.stdout

    return to_its_end


def processes_in(folder: Path) -> list[psutil.Process]:
    """Those that were told of ``folder``."""
    running = (one for one in psutil.process_iter(["cmdline"]) if one.pid != os.getpid())
    return [one for one in running if str(folder) in " ".join(one.info["cmdline"] or ())]


def shares(text: str) -> list[int]:
    return [int(share) for share in re.findall(r"(\d+)%", text)]


def test_application_with_an_agent_inside_gets_its_model(fleet: SmallFleet, run: Run) -> None:
    fleet.create_task("news", "--rounds", "1")
    fleet.serve()
    write_examples(fleet.folder / "app.csv", some_examples(40, seed=1))
    words = (fleet.broker, str(fleet.folder / "app.csv"), str(fleet.state / "root.json"), "beta zeta eta")
    last = run("01", *words).splitlines()[-1]
    assert last.startswith("Prediction(label=")
    assert any(label in last for label in LABELS)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_model_learns_from_corrections_and_answers_offline(run: Run) -> None:
    told = re.findall(r"(\w+): +(\d+) of 20 about games are as the user wants, (\d+) of 50 others right", run("02"))
    (_, games, others), (_, learned, kept), (_, *offline) = told
    assert [when for when, *_ in told] == ["before", "after", "offline"]
    assert int(learned) >= int(games) + 5
    assert int(kept) >= int(others) - 15
    assert offline == [learned, kept]


@pytest.mark.timeout(600)
@pytest.mark.long
def test_camera_folder_grows_while_a_model_learns_from_it(run: Run) -> None:
    printed = run("03")
    first, *_, last = shares("\n".join(re.findall(r"round \d: .*", printed)))
    assert int(re.search(r"grew from 90 to (\d+)", printed)[1]) > 90
    assert last >= max(first, 60)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_watches_learn_together(run: Run) -> None:
    rounds = re.findall(r"round (\d): 3 watches took part; right about strangers: (\d+)%", run("04"))
    assert [number for number, _ in rounds] == ["1", "2", "3"]
    assert int(rounds[-1][1]) >= 65


@pytest.mark.long
@pytest.mark.timeout(600)
def test_adapters_are_saved_for_peft(run: Run) -> None:
    printed = run("05")
    assert "PEFT says: sports\n" in printed
    assert int(re.search(r"adapter_model.safetensors: (\d+) kB", printed)[1]) < 3000


@pytest.mark.timeout(600)
@pytest.mark.long
def test_device_goes_offline_and_loses_nothing(run: Run) -> None:
    printed = run("06")
    releases = re.findall(r"answers from release (\d), (\d+)% right", printed)
    assert [number for number, _ in releases] == ["1", "1", "1", "2"]
    assert len({right for _, right in releases[:3]}) == 1
    assert int(releases[3][1]) > int(releases[0][1])
    assert re.findall(r"round (\d): 1 update from 1 device", printed) == ["1", "2"]
    assert "since then it has trained for round 2 only" in printed


@pytest.mark.long
def test_example_ends_its_processes_when_it_is_terminated(tmp_path: Path, template_cache: dict[str, str]) -> None:
    environment = os.environ | template_cache | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, str(FOLDER / "04_recognise_activities.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as example:
        assert example.stdout is not None
        assert b"a new model" in example.stdout.readline()
        assert processes_in(tmp_path)
        example.send_signal(signal.SIGTERM)
        assert example.wait(60) == 130
    assert not processes_in(tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_how_to_run_it(example: Path) -> None:
    source = example.read_text(encoding="utf-8")
    story = ast.get_docstring(ast.parse(source))
    assert len(source.splitlines()) <= 75
    assert f"python examples/{example.name}" in story
    assert example.name in (FOLDER / "README.md").read_text(encoding="utf-8")
