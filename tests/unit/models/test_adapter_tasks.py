"""A task with adapters that no graph has, from its preparation to the saved folder, without processes and a broker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from peft import PeftModel

from coordinator.aggregation.coverage import UpdateSource
from coordinator.aggregation.rule import AdapterMerge, AggregationRule
from coordinator.aggregation.server_optimizer import OptimizerKind, ServerOptimizer
from coordinator.models.foundation import load_foundation
from coordinator.models.inference_graph import release_graph
from coordinator.models.merging import merged
from coordinator.models.run import Run, prepare
from coordinator.models.saving import save_model
from coordinator.models.torch_modules import torch_module
from coordinator.models.versions import ModelVersion
from edge_sdk.data import write_examples
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, ModelTask, Role, Submodel, TrainablePart, full
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.releases import Precision
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.runtime import examples_of, train
from edge_sdk.training.torch_runtime import TorchRuntime
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.motion_task import RECIPE, motion_task, windows
from tests.support.tiny_models import LABELS

pytestmark = pytest.mark.xdist_group("sensor-transformer-time-series-classification")  # whose templates these are
METHODS = [AdapterMethod.DORA, AdapterMethod.IA3]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task that is ready for its first round."""

    run: Run
    start: ModelVersion
    blobs: BlobFolder
    folder: Path


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.value)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, template_cache: Path) -> Prepared:
    folder = tmp_path_factory.mktemp("task")
    blobs = BlobFolder(folder / "blobs")
    run, start = prepare(motion_task(folder, request.param), blobs, template_cache, threads=1, say=print)
    return Prepared(run, start, blobs, folder)


@pytest.fixture(scope="module")
def updates(made: Prepared) -> list[UpdateSource]:
    """Of one device that trains the whole model and one that trains half of it."""
    whole = full(made.run.foundation.architecture)
    half = Submodel(whole.layers, (2, 2, 2), (25, 25, 25), (whole.adapter_rank + 1) // 2)
    return [trained(made, submodel, seed) for seed, submodel in enumerate((whole, half), start=20)]


@pytest.fixture(scope="module")
def version(made: Prepared, updates: list[UpdateSource]) -> ModelVersion:
    """After their round."""
    return made.run.aggregate(made.start, 1, updates)


def trained(made: Prepared, submodel: Submodel, seed: int) -> UpdateSource:
    """What a device would send that trains ``submodel`` on torch."""
    run, folder = made.run, made.folder / f"device-{seed}"
    folder.mkdir()
    manifest = run.manifest(made.start, submodel, Runtime.TORCH)
    parts = {entry.part.value: str(made.blobs.path_of(entry.digest)) for entry in manifest}
    job = TrainingJob(
        **parts,  # weights, frozen and config: nothing else belongs to such a task
        runtime=Runtime.TORCH,
        examples=str(write_examples(folder / "examples", windows(16, seed))),
        update=str(folder / "update"),
        labels=LABELS,
        recipe=RECIPE,
        seed=seed,
        threads=1,
        memory_limit_bytes=4 << 30,
        architecture=run.foundation.architecture,
        submodel=submodel,
        nested=run.nested(submodel, 1),
    )
    examples = examples_of(job)
    train(TorchRuntime(job, np.zeros(len(LABELS), np.float32)), examples, job, lambda _: None)
    return UpdateSource(str(seed), float(len(examples)), run.trained_slices(submodel), Path(job.update))


def coordinator_logits(made: Prepared, version: ModelVersion) -> np.ndarray:
    """As every evaluation has them."""
    whole = full(made.run.foundation.architecture)
    return np.concatenate(list(made.run._evaluator.logits(whole, version.parameters)))


def test_round_of_devices_on_torch_makes_a_better_model(made: Prepared, version: ModelVersion) -> None:
    before, after = (
        {found.width: found.evaluation for found in made.run.evaluate(judged)} for judged in (made.start, version)
    )
    assert made.run.runtimes == (Runtime.TORCH,)
    for width in ("full", "half"):
        assert after[width].loss < before[width].loss - 0.01, (before, after)


def test_saved_folder_loads_with_peft_and_answers_as_the_coordinator_does(
    made: Prepared, version: ModelVersion
) -> None:
    save_model(made.run.foundation, version, made.folder / "saved")
    base = torch_module(load_foundation(made.folder / "model", LABELS, 1, task=ModelTask.TIME_SERIES_CLASSIFICATION))
    adapted = PeftModel.from_pretrained(base, made.folder / "saved").eval()
    with torch.no_grad():
        inputs = [torch.from_numpy(batch.inputs["series"]) for batch in made.run._evaluator._batches]
        found = np.concatenate([adapted(series=series).logits.numpy() for series in inputs])

    assert np.abs(found - coordinator_logits(made, version)).max() <= 1e-4
    assert np.abs(found - coordinator_logits(made, made.start)).max() > 1e-2


def test_release_has_the_adapters_inside(made: Prepared, version: ModelVersion) -> None:
    """At half width and rank; without quantisation, whose error would hide a missing adapter."""
    run = made.run
    half = Submodel((0, 1, 2), (2, 2, 2), (25, 25, 25), min(2, run.foundation.architecture.adapter_rank))
    graph = release_graph(run.templates, half, version.parameters, Precision.FP32)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    batch = run._evaluator._batches[0]
    expected = torch_module(run.foundation, half, version.parameters)(series=torch.from_numpy(batch.inputs["series"]))

    assert [value.name for value in session.get_inputs()] == ["series"]
    assert np.abs(session.run(["logits"], batch.inputs)[0] - expected.logits.detach().numpy()).max() <= 1e-4


def test_round_of_one_device_is_what_the_device_has(made: Prepared, updates: list[UpdateSource]) -> None:
    """By every merge: compared as merged weights, since factors and what they are added to may change."""
    run, architecture = made.run, made.run.foundation.architecture
    deltas = read_tensors(updates[0].path.read_bytes())
    device = {name: values + deltas.get(name, 0) for name, values in made.start.parameters.items()}
    is_ia3 = architecture.adapters.method is AdapterMethod.IA3
    for merge in {*AdapterMerge} - ({AdapterMerge.STACK} if is_ia3 else set()):
        config = msgspec.structs.replace(run.config, aggregation=AggregationRule(adapters=merge))
        alone = Run(config, run.foundation, run.templates, made.blobs, run._evaluator)
        found = merged(alone.aggregate(made.start, 1, updates[:1]).parameters, architecture)
        for name, expected in merged(device, architecture).items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5, err_msg=f"{name} by {merge.value}")


def test_ranking_is_that_of_the_model_without_adapters(made: Prepared, tmp_path: Path, template_cache: Path) -> None:
    plain = msgspec.structs.replace(made.run.config, adapters=None, part=TrainablePart.HEAD)
    _, start = prepare(plain, BlobFolder(tmp_path / "plain"), template_cache, threads=1, say=print)

    assert made.start.ordering == start.ordering


def test_manifest_for_onnx_is_refused(made: Prepared) -> None:
    with pytest.raises(ConfigurationError, match=r"no training graph.*torch"):
        made.run.manifest(made.start, full(made.run.foundation.architecture), Runtime.ONNX)


def test_dora_on_cut_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"dora cannot adapt down and o.*target q, k, v and up"):
        motion_task(tmp_path, AdapterMethod.DORA, adapters=Adapters(targets=tuple(Role), method=AdapterMethod.DORA))


@pytest.mark.parametrize("method", METHODS)
def test_adapters_beside_another_part_are_refused(tmp_path: Path, method: AdapterMethod) -> None:
    with pytest.raises(ConfigurationError, match=f"{method.value} adapters need part adapters, not no-embeddings"):
        motion_task(tmp_path, method, part=TrainablePart.NO_EMBEDDINGS)


def test_ia3_cannot_be_stacked_and_dora_can(tmp_path: Path) -> None:
    stack = AggregationRule(adapters=AdapterMerge.STACK)
    with pytest.raises(ConfigurationError, match="no factors to stack"):
        motion_task(tmp_path, AdapterMethod.IA3, aggregation=stack)
    motion_task(tmp_path, AdapterMethod.DORA, aggregation=stack)


def test_server_optimizer_with_moments_goes_with_ia3_alone(tmp_path: Path) -> None:
    adam = AggregationRule(optimizer=ServerOptimizer(OptimizerKind.FEDADAM, rate=0.01))
    motion_task(tmp_path, AdapterMethod.IA3, aggregation=adam)
    with pytest.raises(ConfigurationError, match="fedadam"):
        motion_task(tmp_path, AdapterMethod.DORA, aggregation=adam)
