from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from coordinator.demo.inputs import write_examples
from tests.support.small_fleet import LABELS, SmallFleet, some_examples

EXAMPLE = Path(__file__).parents[2] / "examples" / "01_embed_the_agent.py"


def test_application_with_an_agent_inside_gets_its_model(fleet: SmallFleet) -> None:
    fleet.create_task("news", "--rounds", "1")
    fleet.serve()
    write_examples(fleet.folder / "app.csv", some_examples(40, seed=1))
    words = (fleet.broker, str(fleet.folder / "app.csv"), str(fleet.state / "release.pub"), "beta zeta eta")
    home = {"XDG_STATE_HOME": str(fleet.folder / "state")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *words],
        env=fleet.environment | home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + fleet.story()
    assert done.stdout.splitlines()[-1].startswith("Prediction(label=")
    assert any(label in done.stdout.splitlines()[-1] for label in LABELS)


def test_example_is_short() -> None:
    code = [line for line in EXAMPLE.read_text().split('"""')[2].splitlines() if line.strip()]
    assert len(code) < 15
