"""What devices would train and run that nobody has seen yet: what they are offered once they are there."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.config import Participation, TaskConfig
from coordinator.demo.inputs import write_examples
from coordinator.planning.budget import training_budget
from coordinator.planning.forecast import forecast
from coordinator.planning.nesting import Nesting
from coordinator.planning.planner import Planner, TaskCosts
from coordinator.planning.selection import Targets
from coordinator.planning.space import Space
from coordinator.rounds.tasks import queue_task
from coordinator.store.opening import open_store
from edge_sdk.device.battery import SystemBattery
from edge_sdk.device.probe import take_snapshot
from edge_sdk.device.system import System
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import TrainablePart, full
from edge_sdk.errors import UnknownProfileError
from edge_sdk.profile import all_profiles, load_profile
from edge_sdk.protocol.messages import Recipe
from tests.support.bert import MINILM, shapes
from tests.support.small_fleet import some_examples

COSTS = TaskCosts(
    CostModel.of(MINILM, shapes(MINILM)),
    TrainablePart.NO_EMBEDDINGS,
    Recipe(learning_rate=1e-4, batch_size=16, epochs=2, max_tokens=32),
    Nesting(),
)
PLANNER = Planner(COSTS, Space(), range(MINILM.layers))


@pytest.mark.parametrize("name", ["raspberry-pi-zero-2-w", "raspberry-pi-5-4gb", "android-mid-range"])
def test_forecast_is_what_the_device_is_offered_once_it_is_there(tmp_path: Path, name: str) -> None:
    """Its agent runs here, where nothing else needs the memory."""
    profile = load_profile(name)
    seen = take_snapshot(profile, SystemBattery(), tmp_path, System())
    offered = PLANNER.for_training(training_budget(seen), seen.runtime)
    assert forecast(PLANNER, profile, Runtime.ONNX).training == offered


def test_larger_profiles_train_more_and_run_more_than_they_train() -> None:
    size = COSTS.model.parameter_count
    found = {it.name: forecast(PLANNER, it, Runtime.ONNX) for it in all_profiles()}
    zero, pi, jetson = (found[name] for name in ("raspberry-pi-zero-2-w", "raspberry-pi-4-4gb", "jetson-orin-nano-8gb"))
    assert zero.training is not None
    assert pi.training is not None
    assert jetson.training is not None
    assert size(zero.training.submodel) < size(pi.training.submodel) < size(jetson.training.submodel)
    assert jetson.training.submodel == full(MINILM)
    assert zero.inference is not None
    assert size(zero.training.submodel) < size(zero.inference)


def test_nothing_is_planned_for_a_system_of_32_bits_or_for_torch_where_it_does_not_fit() -> None:
    black = forecast(PLANNER, load_profile("beaglebone-black"), Runtime.ONNX)
    assert (black.training, black.inference) == (None, None)
    zero = forecast(PLANNER, load_profile("raspberry-pi-zero-2-w"), Runtime.TORCH)
    assert zero.training is None
    assert zero.inference is not None


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """The folder of a coordinator with a task for all kinds of devices, and one for what can train all on a Pi."""
    folder = tmp_path_factory.mktemp("state")
    write_examples(folder / "texts.csv", some_examples(12, seed=0))
    files = {name: str(folder / "texts.csv") for name in ("calibration_file", "test_file")}
    config = TaskConfig(name="news", model_dir=str(small_model), **files)
    able = TaskConfig(
        name="able",
        model_dir=str(small_model),
        participation=Participation.ABLE,
        targets=Targets(profiles=("raspberry-pi-*",)),
        **files,
    )
    with closing(open_store(folder)) as store:
        for task in (config, able):
            queue_task(store, task, 0.0, "test")
    return folder


def planned(state: Path, *words: str) -> dict[str, dict[str, object]]:
    command = ["task", "plan", *words, "--state-dir", str(state), "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return {row["profile"]: row for row in json.loads(done.stdout)}


def test_task_plan_tells_of_every_profile_that_the_task_is_for(state: Path) -> None:
    rows = planned(state, "news")
    assert [*rows] == [it.name for it in all_profiles()]
    zero, jetson = rows["raspberry-pi-zero-2-w"], rows["jetson-agx-orin-64gb"]
    assert (jetson["trains"], jetson["share"]) == ("4 heads, 4096 FFN, 4 layers", 1.0)
    assert 0 < zero["share"] < 1
    assert zero["memory_mib"] <= zero["limit_mib"] == 168
    assert rows["beaglebone-black"]["trains"] is None
    assert {*planned(state, "able")} == {it.name for it in all_profiles() if it.name.startswith("raspberry-pi-")}


def test_task_that_wants_able_devices_plans_for_none_that_is_not(state: Path) -> None:
    rows = planned(state, "able", "--profile", "raspberry-pi-zero-2-w", "--profile", "raspberry-pi-5-16gb")
    assert [row["share"] for row in rows.values()] == [None, 1.0]


def test_profile_that_is_unknown_is_named_before_a_model_is_loaded(state: Path) -> None:
    with pytest.raises(UnknownProfileError, match="raspberry-pi-5-8gb"):
        CliRunner().invoke(
            app,
            ["task", "plan", "news", "--state-dir", str(state), "--profile", "raspberry-pi-5-8"],
            catch_exceptions=False,
        )
