"""Processes that train or run one submodel, as on a device, and how much memory they take at their peak."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.models.inference_graph import release_graph
from coordinator.models.training_graph import training_graph
from coordinator.models.versions import split_part
from edge_sdk.data import write_examples
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.slicing import Array, extract, slices_of
from edge_sdk.elastic.submodel import Submodel, TrainablePart
from edge_sdk.protocol.messages import Optimizer, Recipe
from edge_sdk.protocol.releases import Precision
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.training.job import Finished, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from tests.benchmarks._cost_models import Subject
from tests.benchmarks._cost_prediction import PredictionJob

_STEPS = 4
_NO_LIMIT_BYTES = 16 << 30


@dataclass(frozen=True, slots=True)
class Training:
    """What to train, of what size of batch, by what."""

    submodel: Submodel
    part: TrainablePart = TrainablePart.NO_EMBEDDINGS
    batch_size: int = 16
    max_tokens: int = 32
    nested: tuple[Submodel, ...] = ()
    runtime: Runtime = Runtime.ONNX
    optimizer: Optimizer = Optimizer.ADAMW
    micro_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What to run, and by what; on torch it is never ``quantised``."""

    submodel: Submodel
    max_tokens: int = 32
    quantised: bool = False
    runtime: Runtime = Runtime.ONNX


def training_peak_bytes(subject: Subject, training: Training) -> int:
    """Of a training process that takes four steps; its files stay in the subject's folder."""
    events: list[TrainingEvent] = []
    TrainingProcess(training_job(subject, training, _STEPS), events.append).wait()
    last = events[-1]
    assert isinstance(last, Finished), last
    return last.result.peak_memory_bytes


def training_job(subject: Subject, training: Training, steps: int) -> TrainingJob:
    """For a training process that takes ``steps``; its files stay in the subject's folder."""
    foundation = subject.foundation
    return TrainingJob(
        **_training_files(subject, training),
        update=str(subject.folder / "update"),
        runtime=training.runtime,
        labels=foundation.labels,
        recipe=Recipe(
            learning_rate=1e-4,
            batch_size=training.batch_size,
            epochs=steps,
            max_tokens=training.max_tokens,
            max_steps=steps,
            micro_batch_size=training.micro_batch_size,
            optimizer=training.optimizer,
        ),
        seed=0,
        threads=1,
        memory_limit_bytes=_NO_LIMIT_BYTES,
        architecture=foundation.architecture,
        submodel=training.submodel,
        nested=training.nested,
    )


def prediction_peak_bytes(subject: Subject, prediction: Prediction) -> int:
    """Of a process that runs each of the subject's examples by itself."""
    job = PredictionJob(
        **_prediction_files(subject, prediction),
        labels=subject.foundation.labels,
        max_tokens=prediction.max_tokens,
        architecture=subject.foundation.architecture,
        submodel=prediction.submodel,
    )
    job_file = _written(subject.folder / "prediction.json", msgspec.json.encode(job))
    command = [sys.executable, "-m", "tests.benchmarks._cost_prediction", job_file]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def _training_files(subject: Subject, training: Training) -> Mapping[str, str]:
    files, folder = _common_files(subject), subject.folder
    parts = split_part(_cut(subject, training.submodel), subject.foundation.family, training.part)
    for name, tensors in zip(("weights", "frozen"), parts, strict=True):
        files[name] = _written_tensors(folder / name, tensors)
    if training.runtime is Runtime.TORCH:
        return files | {"config": _written(folder / "config.json", subject.foundation.config_json)}
    graph = training_graph(subject.templates, training.submodel, training.part)
    return files | {"graph": _written(folder / "graph.onnx", graph.SerializeToString())}


def _prediction_files(subject: Subject, prediction: Prediction) -> Mapping[str, str]:
    files, folder, foundation = _common_files(subject), subject.folder, subject.foundation
    if prediction.runtime is Runtime.ONNX:
        model = release_graph(
            subject.templates,
            prediction.submodel,
            foundation.parameters,
            Precision.INT8 if prediction.quantised else Precision.FP32,
        )
        return files | {"model": _written(folder / "model.onnx", model)}
    files["weights"] = _written_tensors(folder / "weights", _cut(subject, prediction.submodel))
    return files | {"config": _written(folder / "config.json", foundation.config_json)}


def _common_files(subject: Subject) -> dict[str, str]:
    files = {"examples": str(write_examples(subject.folder / "examples", subject.examples))}
    if tokenizer_json := subject.foundation.tokenizer_json:
        files["tokenizer"] = _written(subject.folder / "tokenizer.json", tokenizer_json)
    return files


def _cut(subject: Subject, submodel: Submodel) -> dict[str, Array]:
    foundation = subject.foundation
    slices = slices_of(submodel, foundation.architecture, foundation.family, subject.shapes)
    return extract(foundation.parameters, slices)


def _written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def _written_tensors(path: Path, tensors: Mapping[str, Array]) -> str:
    with path.open("wb") as file:
        write_tensors(file, tensors)
    return str(path)
