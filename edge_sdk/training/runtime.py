"""What trains: the seam between the training loop and a framework, and the loop itself."""

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
        """Add ``share`` of the gradients of ``batch`` to the next update's; the mean loss over it.

        ``share`` is 1 where ``batch`` is all of the update.
        """

    def update(self) -> None:
        """Change the weights by the gradients so far, of which none are left afterwards."""

    def state(self) -> Mapping[str, NDArray[Any]]:
        """All that a later :meth:`restore` needs; float32 and int64 arrays, good until the next call of any method."""

    def restore(self, state: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Become what :meth:`state` told; each array may be gone once the next one is asked for."""

    def finish(self) -> Mapping[str, Array]:
        """What training changed, trained values less first values, by parameter: arrays that are the caller's now.

        The runtime ends with it.
        """


def examples_of(job: TrainingJob) -> EncodedExamples:
    """The examples that ``job`` names, ready to train on.

    Raises ``DataFormatError`` where they are none, or not for the job's task; ``ModelFormatError`` for its tokenizer.
    """
    examples, task = map_examples(Path(job.examples)), job.architecture.task
    if task_of(examples) is not task:
        raise DataFormatError(
            f"{job.examples} holds examples for {task_of(examples).value}; the task is {task.value}: give it others"
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
    """Train as the job's recipe says and write the update; ``on_step`` follows each step and may raise to stop.

    Goes on from ``checkpoint``, by default the job's, which is left to whoever takes the update. Raises
    ``TrainingError`` where the loss is not finite, ``DiskFullError`` or ``StorageError`` where the update cannot be
    written.
    """
    checkpoint = checkpoint or Checkpoint(job)
    trained = _resumed(runtime, checkpoint)
    for batch in islice(_batches(examples, job), trained.steps, None):
        started_s = time.monotonic()
        loss = _finite(take_step(runtime, batch, job), trained.steps + 1)
        trained = trained.after(loss, time.monotonic() - started_s)
        if checkpoint.is_due:
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
    """One update by ``batch``, in parts where the recipe says so: their gradients add up to the whole's. Its loss.

    Raises ``TrainingError`` where the batch has no targets, or a step fails.
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
