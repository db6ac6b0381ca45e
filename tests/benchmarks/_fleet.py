"""The demo's fleet without the wire: its data, its plan and real training processes; files take the broker's place."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from coordinator.config import CoordinatorConfig, TaskConfig
from coordinator.demo.fleet import FLEET, NAME, DemoDevice, data_file
from coordinator.demo.inputs import Deal, deal, packaged_model, packaged_texts
from coordinator.demo.inputs import write_examples as write_csv
from coordinator.demo.main import RECIPE
from coordinator.models.run import prepare
from coordinator.models.versions import ModelVersion
from coordinator.planning.budget import training_budget
from coordinator.planning.planner import Planner, TaskCosts
from edge_sdk.config import AgentConfig
from edge_sdk.data import read_examples, split_held_out, write_examples
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.profile import load_profile
from edge_sdk.protocol.messages import Part, Snapshot
from edge_sdk.training.job import Failed, Finished, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from edge_sdk.transport.blob_folder import BlobFolder

NO_LIMIT_BYTES = 8 << 30


def say(text: str) -> None:
    """Progress goes to standard error, so that standard output is the table and the figure alone."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """One device: its agent's settings, what its profile lets it spend, and how many examples it trains from."""

    config: AgentConfig
    snapshot: Snapshot
    samples: int

    @property
    def name(self) -> str:
        return self.config.device

    @property
    def examples(self) -> Path:
        """Its own training part."""
        return self.config.state_dir / "examples.jsonl"

    @property
    def update(self) -> Path:
        """Where its training process leaves the update."""
        return self.config.state_dir / "update.safetensors"


class DemoFleet:
    """The demo's run at version 0 and its devices, for one ``seed``; everything lies in ``folder``."""

    def __init__(self, folder: Path, seed: int) -> None:
        dealt = deal(packaged_texts(), [device.name for device in FLEET], seed=seed)
        (folder / "data").mkdir()
        self.devices = [_device(device, dealt, folder) for device in FLEET]
        settings, config = CoordinatorConfig(state_dir=folder / "coordinator", broker=""), _task(dealt, folder, seed)
        self._blobs = BlobFolder(settings.blob_dir)
        self.run, self.first = prepare(
            config, self._blobs, settings.template_cache, threads=settings.threads, say=lambda text: say(f"  {text}")
        )
        costs = TaskCosts(self.run.costs, config.part, config.recipe, config.nesting, config.encoding)
        self._planner = Planner(costs, config.space, self.first.ordering.layer_ranking)

    def planned(self, device: FleetDevice, memory_factor: float = 1.0) -> Submodel | None:
        """What the coordinator offers this device."""
        budget = training_budget(device.snapshot, memory_factor=memory_factor)
        plan = self._planner.for_training(budget, Runtime.ONNX)
        return None if plan is None else plan.submodel

    def job(
        self, device: FleetDevice, version: ModelVersion, submodel: Submodel, number: int, *, limit_bytes: int
    ) -> TrainingJob:
        """What the device's agent makes of the offer of ``submodel`` in round ``number``, on one thread."""
        run = self.run
        paths = {entry.part: str(self._blobs.path_of(entry.digest)) for entry in run.manifest(version, submodel)}
        return TrainingJob(
            weights=paths[Part.WEIGHTS],
            frozen=paths[Part.FROZEN],
            graph=paths[Part.TRAINING_GRAPH],
            tokenizer=paths[Part.TOKENIZER],
            examples=str(device.examples),
            update=str(device.update),
            labels=run.foundation.labels,
            recipe=run.config.recipe,
            seed=device.config.seed * 1_000_003 + number,
            threads=1,
            memory_limit_bytes=limit_bytes,
            architecture=run.foundation.architecture,
            submodel=submodel,
            nested=run.nested(submodel, number),
        )


def train(job: TrainingJob) -> Finished | Failed:
    """Run ``job`` in a training process, to its end."""
    events: list[TrainingEvent] = []
    TrainingProcess(job, events.append).wait()
    last = events[-1]
    assert isinstance(last, Finished | Failed)
    return last


def _device(device: DemoDevice, dealt: Deal, folder: Path) -> FleetDevice:
    """Its file and its training part, as the demo and its agent make them."""
    write_csv(data_file(device, folder), dealt.devices[device.name])
    state_dir = folder / "devices" / device.name
    state_dir.mkdir(parents=True)
    config = AgentConfig(device=device.name, broker="", fleet=NAME, profile=device.profile, state_dir=state_dir)
    training, _ = split_held_out(read_examples(data_file(device, folder)), config.held_out_share, config.seed)
    made = FleetDevice(config, load_profile(device.profile).at_rest(), len(training))
    write_examples(made.examples, training)
    return made


def _task(dealt: Deal, folder: Path, seed: int) -> TaskConfig:
    """The demo's own, all else being its defaults."""
    files = {"calibration": dealt.calibration, "test": dealt.test}
    for name, examples in files.items():
        write_csv(folder / "data" / f"{name}.csv", examples)
    return TaskConfig(
        name="benchmark",
        model_dir=str(packaged_model()),
        calibration_file=str(folder / "data" / "calibration.csv"),
        test_file=str(folder / "data" / "test.csv"),
        recipe=RECIPE,
        seed=seed,
    )
