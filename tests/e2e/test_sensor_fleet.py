"""A fleet that learns from sensor windows, by adapters, from a model that begins at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from coordinator.models.foundation import load_foundation
from coordinator.models.torch_modules import torch_module
from coordinator.store.states import AssignmentStatus, Outcome, Phase
from edge_sdk.data import ArrayExamples, write_examples
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import AdapterMethod, ModelTask
from tests.support.broker import Broker
from tests.support.small_fleet import SmallFleet

STEPS, CHANNELS, LABELS = 24, 5, ("rest", "slow", "fast")


def windows(count: int, seed: int) -> ArrayExamples:
    """The faster the movement, the higher the frequency; a random phase and noise on every channel."""
    random = np.random.default_rng(seed)
    kinds = random.integers(0, len(LABELS), count)
    time, phases = np.linspace(0, 2 * np.pi, STEPS)[None, :, None], random.uniform(0, 6, (count, 1, CHANNELS))
    values = np.sin((1 + 2 * kinds)[:, None, None] * time + phases) + 0.1 * random.normal(size=(count, STEPS, CHANNELS))
    return ArrayExamples(values.astype(np.float32), tuple(LABELS[kind] for kind in kinds))


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "runtime", "rounds"),
    [
        (AdapterMethod.LORA, Runtime.ONNX, 2),
        (AdapterMethod.DORA, Runtime.TORCH, 1),
        (AdapterMethod.IA3, Runtime.TORCH, 1),
    ],
)
def test_sensors_train_adapters_and_the_result_loads_with_peft(
    embedded_broker: Broker,
    tmp_path: Path,
    template_cache: dict[str, str],
    method: AdapterMethod,
    runtime: Runtime,
    rounds: int,
) -> None:
    """A third device trains on ONNX: it takes part where it can, else it is told why not and gets the release."""
    model, state = tmp_path / "model", ("--state-dir", str(tmp_path / "coordinator"))
    with SmallFleet(tmp_path, model, str(embedded_broker.address), template_cache) as fleet:
        files = {name: write_examples(tmp_path / name, windows(60, seed)) for seed, name in enumerate(("few", "test"))}
        sizes = ("--patch", "4", "--hidden", "24", "--heads", "4", "--ffn", "50")
        fleet.command("coordinator.cli", "model", "new", str(model), str(files["test"]), *sizes)
        _create_task(fleet, files, method, rounds, *state)
        fleet.serve()
        runtimes = {"wrist": runtime, "ankle": runtime, "hip": Runtime.ONNX}
        for seed, (name, chosen) in enumerate(runtimes.items(), start=10):
            data = write_examples(tmp_path / name, windows(60, seed))
            fleet.agent(name, 900 if chosen is Runtime.TORCH else 400, data=data, runtime=chosen)
        fleet.finish()

        able = {name for name, chosen in runtimes.items() if chosen is runtime}
        _check_rounds(fleet, rounds, able, rank=0 if method is AdapterMethod.IA3 else 4)
        if "hip" not in able:
            for name in ("coordinator", "hip"):
                assert "it cannot be trained on onnx; run the agent with --runtime torch" in fleet.log_of(name)
        judged = [
            {found.width: found for found in fleet.read(lambda tx, n=number: tx.evaluations.of_round("motion", n))}
            for number in (0, rounds)
        ]
        assert judged[1]["full"].loss < judged[0]["full"].loss
        fleet.command("coordinator.cli", "model", "save", "motion", str(tmp_path / "saved"), *state)
    assert abs(_accuracy_with_peft(model, tmp_path / "saved") - judged[1]["full"].accuracy) <= 1 / 60 + 1e-9


def _create_task(fleet: SmallFleet, files: dict[str, Path], method: AdapterMethod, rounds: int, *state: str) -> None:
    data = ("--model", str(fleet.model), "--calibration", str(files["few"]), "--test", str(files["test"]))
    eager = ("--rounds", str(rounds), "--learning-rate", "1e-2", "--epochs", "4", "--max-steps", "12")
    waiting = ("--min-devices", "3" if method is AdapterMethod.LORA else "2", "--quorum", "2")
    adapters = ("--part", "adapters", "--adapters", method.value, "--lora-rank", "4", "--salience", "l1")
    fleet.command("coordinator.cli", "task", "create", "motion", *state, *data, *eager, *waiting, *adapters)


def _check_rounds(fleet: SmallFleet, rounds: int, able: set[str], *, rank: int) -> None:
    known = fleet.read(lambda tx: tx.rounds.all("motion"))
    assert [one.phase for one in known] == [Phase.CLOSED] * rounds, fleet.story()
    for one in known:
        offers = fleet.read(lambda tx, n=one.number: tx.offers.of_round("motion", n))
        assert {offer.device for offer in offers} == able, fleet.story()
        assert {offer.outcome for offer in offers} == {Outcome.UPDATED}, fleet.story()
        assert {offer.submodel.adapter_rank for offer in offers} == {rank}
    releases = fleet.read(lambda tx: tx.assignments.of_task("motion"))
    assert [one.status for one in releases] == [AssignmentStatus.HEALTHY] * 3, fleet.story()


def _accuracy_with_peft(model: Path, saved: Path) -> float:
    base = torch_module(load_foundation(model, sorted(LABELS), 1, task=ModelTask.TIME_SERIES_CLASSIFICATION))
    adapted, test = PeftModel.from_pretrained(base, saved), windows(60, seed=1)
    with torch.no_grad():
        found = adapted(series=torch.from_numpy(test.values)).logits.argmax(1).tolist()
    return float(np.mean([sorted(LABELS)[index] == label for index, label in zip(found, test.labels, strict=True)]))
