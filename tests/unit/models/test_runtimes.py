"""What every training runtime promises, and that two of them train alike, to rounding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.models.foundation import Foundation
from coordinator.models.templates import Templates
from coordinator.models.training_graph import training_graph
from edge_sdk.data import write_examples
from edge_sdk.elastic.families import Family
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.slicing import Array, extract, slices_of
from edge_sdk.elastic.submodel import Role, Submodel, TrainablePart
from edge_sdk.protocol.messages import Optimizer, Recipe
from edge_sdk.protocol.tensors import Tensors, read_tensors, write_tensors
from edge_sdk.training.calibration import logit_offset
from edge_sdk.training.job import Progress, TrainingJob
from edge_sdk.training.onnx_runtime import OnnxRuntime
from edge_sdk.training.runtime import TrainingRuntime, examples_of, train
from edge_sdk.training.torch_runtime import TorchRuntime
from tests.support.tiny_examples import tiny_examples
from tests.support.tiny_models import in_every_stack

RUNTIMES: dict[Runtime, Callable[[TrainingJob, Array], TrainingRuntime]] = {
    Runtime.ONNX: OnnxRuntime,
    Runtime.TORCH: TorchRuntime,
}
STEPS = 50
PLAIN = Recipe(learning_rate=3e-3, batch_size=4, epochs=1000, max_tokens=16, max_steps=STEPS)
RECIPES = {
    "plain": {},
    "clipped": {"clip_norm": 0.1, "weight_decay": 0.5},
    "proximal": {"proximal": 2.0, "clip_norm": 1.0},
    "taught": {"distillation": 0.7},
    "untaught": {"distillation": 0.0},
    "sgd": {"optimizer": Optimizer.SGD, "learning_rate": 0.03},
    "momentum": {"optimizer": Optimizer.MOMENTUM, "learning_rate": 0.01, "clip_norm": 1.0},
    "accumulated": {"micro_batch_size": 3, "clip_norm": 0.05},
}
NESTED = {"taught", "untaught", "proximal", "accumulated"}


@dataclass(frozen=True, slots=True)
class Outcome:
    losses: list[float]
    update: Tensors


def job_of(tiny: Foundation, templates: Templates, folder: Path, part: TrainablePart, recipe: Recipe) -> TrainingJob:
    """Two of the layers, at widths that differ, for both runtimes."""
    architecture, family = tiny.architecture, tiny.family
    rank = architecture.adapter_rank
    submodel = in_every_stack(Submodel((0, 2), (3, 2), (40, 25), max(0, rank - 1)), architecture)
    shapes = {name: values.shape for name, values in tiny.parameters.items()}
    parameters = extract(tiny.parameters, slices_of(submodel, architecture, family, shapes))
    for name, is_trained in (("weights", True), ("frozen", False)):
        chosen = {key: array for key, array in parameters.items() if family.is_trainable(key, part) is is_trained}
        with (folder / name).open("wb") as file:
            write_tensors(file, chosen)
    (folder / "graph.onnx").write_bytes(training_graph(templates, submodel, part).SerializeToString())
    (folder / "config.json").write_bytes(tiny.config_json)
    (folder / "tokenizer.json").write_bytes(tiny.tokenizer_json)
    return TrainingJob(
        weights=str(folder / "weights"),
        frozen=str(folder / "frozen"),
        graph=str(folder / "graph.onnx"),
        config=str(folder / "config.json"),
        tokenizer=str(folder / "tokenizer.json") if tiny.tokenizer_json else "",
        examples=str(write_examples(folder / "examples", tiny_examples(tiny))),
        update=str(folder / "update"),
        labels=tiny.labels,
        recipe=recipe,
        seed=3,
        threads=1,
        memory_limit_bytes=4 << 30,
        architecture=architecture,
        submodel=submodel,
    )


def nested_in(job: TrainingJob) -> tuple[Submodel, ...]:
    rank, architecture = job.submodel.adapter_rank, job.architecture
    return (
        in_every_stack(Submodel((0, 2), (2, 1), (25, 25), min(2, rank)), architecture),
        in_every_stack(Submodel((0, 2), (1, 1), (10, 1), min(1, rank)), architecture),
    )


def outcome_of(job: TrainingJob, runtime: Runtime) -> Outcome:
    examples = examples_of(job)
    losses: list[float] = []
    trainer = RUNTIMES[runtime](job, logit_offset(examples.label_counts))
    train(trainer, examples, job, lambda progress: losses.append(progress.loss))
    return Outcome(losses, read_tensors(Path(job.update).read_bytes()))


def part_of(tiny: Foundation) -> TrainablePart:
    return TrainablePart.ADAPTERS if tiny.architecture.adapters else TrainablePart.NO_EMBEDDINGS


def moved_by_rounding(family: Family) -> tuple[str, ...]:
    """How the names of biases end that change no softmax: their gradient is rounding, which AdamW blows up."""
    return tuple(f"{path}.bias" for stack in family.stacks for path in stack.modules(Role.K))


@pytest.mark.parametrize("name", RECIPES)
def test_runtimes_train_alike(tiny: Foundation, tiny_templates: Templates, tmp_path: Path, name: str) -> None:
    recipe = msgspec.structs.replace(PLAIN, **RECIPES[name])
    job = job_of(tiny, tiny_templates, tmp_path, part_of(tiny), recipe)
    if name in NESTED:
        job = msgspec.structs.replace(job, nested=nested_in(job))
    ours, torchs = (outcome_of(job, runtime) for runtime in RUNTIMES)
    assert len(ours.losses) == STEPS
    np.testing.assert_allclose(ours.losses, torchs.losses, rtol=1e-4, atol=1e-5)
    assert ours.update.keys() == torchs.update.keys()
    for key, delta in ours.update.items():
        if not key.endswith(moved_by_rounding(tiny.family)):
            assert np.linalg.norm(delta - torchs.update[key]) <= 1e-2 * np.linalg.norm(delta), key


class EndedError(Exception):
    pass


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", Optimizer)
def test_run_that_goes_on_from_its_checkpoint_gives_the_same_update(
    tiny: Foundation, tiny_templates: Templates, tmp_path: Path, runtime: Runtime, kind: Optimizer
) -> None:
    recipe = msgspec.structs.replace(PLAIN, optimizer=kind, max_steps=6, micro_batch_size=3)
    job = job_of(tiny, tiny_templates, tmp_path, part_of(tiny), recipe)
    whole = outcome_of(job, runtime)
    job = msgspec.structs.replace(job, checkpoint=str(tmp_path / "checkpoint"), checkpoint_interval_s=0.0)
    examples = examples_of(job)
    offset = logit_offset(examples.label_counts)

    def end(progress: Progress) -> None:
        if progress.step == 4:
            raise EndedError

    with pytest.raises(EndedError):
        train(RUNTIMES[runtime](job, offset), examples, job, end)
    seen: list[int] = []
    result = train(RUNTIMES[runtime](job, offset), examples, job, lambda progress: seen.append(progress.step))
    assert seen == [5, 6]
    assert (result.steps, result.loss_first) == (6, pytest.approx(whole.losses[0], rel=1e-6))
    update = read_tensors(Path(job.update).read_bytes())
    for key, delta in whole.update.items():
        np.testing.assert_array_equal(update[key], delta, err_msg=key)


@pytest.mark.parametrize("part", [TrainablePart.ALL, TrainablePart.HEAD])
def test_runtimes_train_any_part_alike(
    tiny: Foundation, tiny_templates: Templates, tmp_path: Path, part: TrainablePart
) -> None:
    if tiny.architecture.adapters:
        pytest.skip("models with adapters train these")
    if not any(tiny.family.is_trainable(name, part) for name in tiny.parameters):
        pytest.skip("its head is its embeddings; a task that trains nothing is refused")
    job = job_of(tiny, tiny_templates, tmp_path, part, PLAIN)
    job = msgspec.structs.replace(job, nested=nested_in(job))
    ours, torchs = (outcome_of(job, runtime) for runtime in RUNTIMES)
    np.testing.assert_allclose(ours.losses, torchs.losses, rtol=1e-4, atol=1e-5)


def test_recipes_differ_in_what_they_train(tiny: Foundation, tiny_templates: Templates, tmp_path: Path) -> None:
    """The control of the tests above: an option changes the losses by more than the runtimes differ.

    Where text is generated there is no teacher, so that both recipes about it are one.
    """
    found = {}
    for name, options in RECIPES.items():
        recipe = msgspec.structs.replace(PLAIN, max_steps=20, **options)
        job = job_of(tiny, tiny_templates, tmp_path, part_of(tiny), recipe)
        nested = nested_in(job) if name in NESTED else ()
        found[name] = outcome_of(msgspec.structs.replace(job, nested=nested), Runtime.TORCH).losses
    if tiny.architecture.task.generates:
        assert found.pop("taught") == found["untaught"]
    for one, other in itertools.combinations(found.values(), 2):
        assert not np.allclose(one, other, rtol=2e-4, atol=0)
