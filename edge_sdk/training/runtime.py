"""The training loop, and the interface of the runtimes (ONNX or torch) that it trains with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edge_sdk.data import map_examples
from edge_sdk.data.batches import Batch, EncodedExamples, encode_examples
from edge_sdk.data.examples import task_of
from edge_sdk.elastic.slicing import Array
from edge_sdk.errors import DataFormatError, TrainingError
from edge_sdk.training.checkpoint import Checkpoint, Trained
from edge_sdk.training.feedback import write_update
from edge_sdk.training.job import Progress, TrainingJob, TrainingResult
from edge_sdk.training.memory import memory_status


class TrainingRuntime(Protocol):
    """A model with its optimizer: :mod:`edge_sdk.training.onnx_runtime` and :mod:`edge_sdk.training.torch_runtime`."""

    def accumulate(self, batch: Batch, share: float) -> float:
        """Add the gradients of ``batch``, times ``share``, to those of the next update; the mean loss over ``batch``.

        ``share`` is 1 if ``batch`` is the whole batch of the update, and less for a part of it.
        """

    def update(self) -> None:
        """Update the weights by the gradients accumulated so far, and reset these."""

    def state(self) -> Mapping[str, NDArray[Any]]:
        """All that :meth:`restore` needs: float32 and int64 arrays, valid until the next call of any method."""

    def restore(self, state: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Return to an earlier :meth:`state`; each array may become invalid when the next one is requested."""

    def finish(self) -> Mapping[str, Array]:
        """The deltas, trained values less first values, by parameter: arrays that belong to the caller.

        The runtime cannot be used afterwards. Raises ``TrainingError`` if a value is not finite.
        """


def examples_of(job: TrainingJob) -> EncodedExamples:
    """The examples that ``job`` names, encoded for training.

    Raises ``DataFormatError`` if they cannot be read or are for another task, ``ModelFormatError`` for a bad tokenizer.
    """
    examples, task = map_examples(Path(job.examples)), job.architecture.task
    if task_of(examples) is not task:
        raise DataFormatError(
            f"{job.examples} holds examples for {task_of(examples).value}; the task needs {task.value}: give others"
        )
    try:
        return encode_examples(
            examples,
            job.labels,
            tokenizer_json=Path(job.tokenizer).read_bytes() if job.tokenizer else b"",
            max_tokens=job.recipe.max_tokens,
            pixel_mean=job.recipe.pixel_mean,
            pixel_std=job.recipe.pixel_std,
            input_shape=job.architecture.input_shape,
        )
    except DataFormatError as error:
        raise DataFormatError(f"{job.examples}: {error}") from error


def train(
    runtime: TrainingRuntime,
    examples: EncodedExamples,
    job: TrainingJob,
    on_step: Callable[[Progress], None],
    checkpoint: Checkpoint | None = None,
) -> TrainingResult:
    """Train as the job's recipe says and write the update; ``on_step`` is called after each step and may raise to stop.

    Resumes from ``checkpoint``, by default the job's, and leaves it there. Raises ``TrainingError`` if the loss is not
    finite, ``DiskFullError`` or another ``StorageError`` if the update cannot be written.
    """
    checkpoint = checkpoint or Checkpoint(job)
    trained = _resumed(runtime, checkpoint)
    for batch in islice(_batches(examples, job), trained.steps, None):
        started_s = time.monotonic()
        loss = _finite(take_step(runtime, batch, job), trained.steps + 1)
        took_s = time.monotonic() - started_s
        trained = trained.after(loss, took_s)
        if checkpoint.is_due(took_s):
            checkpoint.save(runtime.state(), trained)
        on_step(Progress(step=trained.steps, steps=job.recipe.steps(len(examples)), loss=loss))
    write_update(job, runtime.finish())
    return TrainingResult(
        samples=len(examples),
        steps=trained.steps,
        loss_first=trained.loss_first,
        loss_last=trained.loss_last,
        seconds=trained.seconds,
        peak_memory_bytes=memory_status().peak_bytes,
    )


def take_step(runtime: TrainingRuntime, batch: Batch, job: TrainingJob) -> float:
    """Take one optimizer step on ``batch``; its mean loss. With micro-batches, the gradients of the parts are summed.

    Raises ``TrainingError`` if the batch has no targets, or if the runtime fails.
    """
    task, size = job.architecture.task, job.recipe.micro_batch_size or len(batch.targets)
    total, loss = batch.count(task), 0.0
    if not total:
        raise TrainingError("a batch has no labelled example; nothing can be learnt from it")
    for part in batch.split(size):
        share = part.count(task) / total
        if share:  # a mean over no targets is not a number
            loss += share * runtime.accumulate(part, share)
    runtime.update()
    return loss


def _resumed(runtime: TrainingRuntime, checkpoint: Checkpoint) -> Trained:
    found = checkpoint.load()
    if found is None:
        return Trained()
    trained, state = found
    runtime.restore(state)
    return trained


def _batches(examples: EncodedExamples, job: TrainingJob) -> Iterator[Batch]:
    recipe = job.recipe
    epochs = (examples.batches(recipe.batch_size, job.seed, epoch) for epoch in range(recipe.epochs))
    return islice(chain.from_iterable(epochs), recipe.steps(len(examples)))


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step}; lower the learning rate or set clip_norm")
    return loss
