"""What trains: the seam between the training loop and a framework, and the loop itself."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from edge_sdk.data import read_examples
from edge_sdk.data.batches import Batch, EncodedExamples, encode_examples, task_of
from edge_sdk.elastic.slicing import Array
from edge_sdk.errors import DataFormatError, StorageError, TrainingError
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.training.job import Progress, TrainingJob, TrainingResult
from edge_sdk.training.memory import memory_status


class TrainingRuntime(Protocol):
    """A model with its optimizer: :mod:`edge_sdk.training.onnx_runtime` and :mod:`edge_sdk.training.torch_runtime`."""

    def step(self, batch: Batch) -> float:
        """Train on ``batch``; the mean loss over it, before the update."""

    def finish(self) -> Mapping[str, Array]:
        """What training changed, trained values less first values, by parameter; the runtime ends with it."""


def examples_of(job: TrainingJob) -> EncodedExamples:
    """The examples that ``job`` names, ready to train on.

    Raises ``DataFormatError`` where they are none, or not for the job's task; ``ModelFormatError`` for its tokenizer.
    """
    examples, task = read_examples(Path(job.examples)), job.architecture.task
    if task_of(examples) is not task:
        raise DataFormatError(
            f"{job.examples} holds examples for {task_of(examples).value}; the task is {task.value}: give it others"
        )
    return encode_examples(
        examples,
        job.labels,
        tokenizer_json=Path(job.tokenizer).read_bytes() if job.tokenizer else b"",
        max_tokens=job.recipe.max_tokens,
        pixel_mean=job.recipe.pixel_mean,
        pixel_std=job.recipe.pixel_std,
    )


def train(
    runtime: TrainingRuntime, examples: EncodedExamples, job: TrainingJob, on_step: Callable[[Progress], None]
) -> TrainingResult:
    """Train as the job's recipe says and write the update; ``on_step`` follows each step and may raise to stop.

    Raises ``TrainingError`` where the loss is not finite, ``StorageError`` where the update cannot be written.
    """
    started_s = time.monotonic()
    losses = _train_epochs(runtime, examples, job, on_step)
    write_update(Path(job.update), runtime.finish())
    return TrainingResult(
        samples=len(examples),
        steps=len(losses),
        loss_first=losses[0],
        loss_last=losses[-1],
        seconds=time.monotonic() - started_s,
        peak_memory_bytes=memory_status().peak_bytes,
    )


def write_update(path: Path, deltas: Mapping[str, Array]) -> None:
    """Write ``deltas`` in the safetensors format so that ``path`` is whole or absent, whatever happens."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write_tensors(file, deltas)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"update {path} cannot be written ({error}); free some space") from error


def _train_epochs(
    runtime: TrainingRuntime, examples: EncodedExamples, job: TrainingJob, on_step: Callable[[Progress], None]
) -> list[float]:
    recipe, losses = job.recipe, list[float]()
    steps = recipe.epochs * math.ceil(len(examples) / recipe.batch_size)
    steps = min(steps, recipe.max_steps or steps)
    epochs = (examples.batches(recipe.batch_size, job.seed, epoch) for epoch in range(recipe.epochs))
    for batch in islice(chain.from_iterable(epochs), steps):
        losses.append(_finite(runtime.step(batch), len(losses) + 1))
        on_step(Progress(step=len(losses), steps=steps, loss=losses[-1]))
    return losses


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step}; lower the learning rate or set clip_norm")
    return loss
