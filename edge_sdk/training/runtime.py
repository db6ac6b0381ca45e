"""What trains: the seam between the training loop and a framework, and the loop itself."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from edge_sdk.elastic.slicing import Array
from edge_sdk.errors import StorageError, TrainingError
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.training.data import Batch, EncodedExamples
from edge_sdk.training.job import Progress, TrainingJob, TrainingResult
from edge_sdk.training.memory import memory_status


class TrainingRuntime(Protocol):
    """A model with its optimizer: onnxruntime in :mod:`edge_sdk.training.onnx_runtime`, plain numpy in the tests."""

    def step(self, batch: Batch) -> float:
        """Train on ``batch``; the mean loss over it, before the update."""

    def finish(self) -> Mapping[str, Array]:
        """What training changed, trained values less first values, by parameter; the runtime ends with it."""


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
        samples=len(examples.rows),
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
    steps = recipe.epochs * math.ceil(len(examples.rows) / recipe.batch_size)
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
