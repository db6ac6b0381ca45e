"""A fleet that learns from sensor windows, by adapters, from a model that begins at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from coordinator.models.foundation import load_foundation
from coordinator.models.torch_modules import torch_module
from coordinator.store.states import Outcome, Phase, ReleaseStatus
from edge_sdk.data import ArrayExamples, write_examples
from edge_sdk.elastic.submodel import ModelTask
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
def test_sensors_train_adapters_and_the_result_loads_with_peft(
    embedded_broker: Broker, tmp_path: Path, template_cache: dict[str, str]
) -> None:
    model, state = tmp_path / "model", ("--state-dir", str(tmp_path / "coordinator"))
    with SmallFleet(tmp_path, model, str(embedded_broker.address), template_cache) as fleet:
        files = {name: write_examples(tmp_path / name, windows(60, seed)) for seed, name in enumerate(("few", "test"))}
        sizes = ("--patch", "4", "--hidden", "24", "--heads", "4", "--ffn", "50")
        fleet.command("coordinator.cli", "model", "new", str(model), str(files["test"]), *sizes)
        data = ("--model", str(model), "--calibration", str(files["few"]), "--test", str(files["test"]))
        eager = ("--rounds", "2", "--min-devices", "2", "--learning-rate", "1e-2", "--epochs", "4", "--max-steps", "12")
        adapters = ("--part", "adapters", "--lora-rank", "4", "--salience", "l1")
        fleet.command("coordinator.cli", "task", "create", "motion", *state, *data, *eager, *adapters)
        fleet.serve()
        for seed, name in enumerate(("wrist", "ankle"), start=10):
            fleet.agent(name, 400, data=write_examples(tmp_path / name, windows(60, seed)))
        fleet.finish()

        rounds = fleet.read(lambda tx: tx.rounds.all("motion"))
        assert [known.phase for known in rounds] == [Phase.CLOSED] * 2, fleet.story()
        offers = [
            offer
            for known in rounds
            for offer in fleet.read(lambda tx, n=known.number: tx.offers.of_round("motion", n))
        ]
        assert {offer.outcome for offer in offers} == {Outcome.UPDATED}, fleet.story()
        assert {offer.submodel.adapter_rank for offer in offers} == {4}
        releases = fleet.read(lambda tx: tx.releases.of_task("motion"))
        assert [known.status for known in releases] == [ReleaseStatus.INSTALLED] * 2, fleet.story()
        judged = fleet.read(lambda tx: [tx.evaluations.of_round("motion", number) for number in (0, 2)])
        first, last = ({found.width: found.loss for found in part} for part in judged)
        assert last["full"] < first["full"]

        fleet.command("coordinator.cli", "model", "save", "motion", str(tmp_path / "saved"), *state)
    base = torch_module(load_foundation(model, sorted(LABELS), 1, task=ModelTask.TIME_SERIES_CLASSIFICATION))
    adapted = PeftModel.from_pretrained(base, tmp_path / "saved")
    test = windows(60, seed=1)
    with torch.no_grad():
        found = adapted(series=torch.from_numpy(test.values)).logits.argmax(1)
    right = np.mean([sorted(LABELS)[index] == label for index, label in zip(found.tolist(), test.labels, strict=True)])
    full = next(result.accuracy for result in judged[1] if result.width == "full")
    assert abs(right - full) <= 1 / len(test) + 1e-9
