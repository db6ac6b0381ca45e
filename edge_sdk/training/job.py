"""The interface between the agent and its training process: a job file in, JSON lines out.

The worker's exit status is 0 after :class:`Finished`, else the ``exit_code`` of the error behind :class:`Failed` (7 if
memory ran out, see :mod:`edge_sdk.errors`). Native code that is refused memory may end the worker by a signal before it
can say anything; :mod:`edge_sdk.training.process` then makes up the failure.
"""

from __future__ import annotations

import msgspec

from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import Architecture, Submodel
from edge_sdk.errors import DataFormatError, RaffmError, StorageError, TrainingMemoryError
from edge_sdk.protocol.messages import FP32, Count, Encoding, Failure, Positive, Recipe, Seconds


class TrainingJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training run. The first seven fields are paths; the update to ``weights`` is written to ``update``.

    ``graph`` is for ONNX, ``config`` for torch, ``tokenizer`` for tasks on text; otherwise they are empty. ``examples``
    is a file for :func:`edge_sdk.data.map_examples`; all of it is trained on. Those of the files that are ``blobs``,
    named by their SHA-256, are compared with their names first, since a damaged model would still train.

    Every step also trains the prefixes ``nested`` of ``submodel``, widest first, see :mod:`.nested`.
    ``memory_limit_bytes`` bounds the process's resident memory, see :mod:`edge_sdk.training.memory`. A run resumes from
    the file ``checkpoint`` if that is its own, and writes it every ``checkpoint_interval_s``, earlier if the next step
    would end after that. ``providers`` are those of :func:`edge_sdk.sessions.open_session`. ``mixed_precision`` and
    ``gradient_checkpointing`` are for torch.

    The update is written in ``encoding``, where ``rounding_seed`` decides the rounding. The file ``residual``, if there
    is one, holds what earlier updates lost and this one makes up for; what this one loses goes to ``new_residual``: see
    :mod:`.feedback`.
    """

    weights: str
    frozen: str
    examples: str
    update: str
    graph: str = ""
    config: str = ""
    tokenizer: str = ""
    runtime: Runtime = Runtime.ONNX
    labels: tuple[str, ...]
    recipe: Recipe
    seed: Count
    threads: Positive
    memory_limit_bytes: Positive
    architecture: Architecture
    submodel: Submodel
    nested: tuple[Submodel, ...] = ()
    blobs: tuple[str, ...] = ()
    checkpoint: str = ""
    checkpoint_interval_s: Seconds = 45.0
    providers: tuple[str, ...] | None = None
    mixed_precision: bool = False
    gradient_checkpointing: bool = False
    encoding: Encoding = FP32
    rounding_seed: Count = 0
    residual: str = ""
    new_residual: str = ""


class TrainingResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The measurements of a run. ``samples`` counts each example once; losses are of the first and the last step."""

    samples: Positive
    steps: Positive
    loss_first: float
    loss_last: float
    seconds: Seconds
    peak_memory_bytes: Count


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A step is done."""

    step: Positive
    steps: Positive
    loss: float


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """A line for the agent's log, with the logging level's number; training goes on."""

    level: int
    text: str


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The update has been written."""

    result: TrainingResult


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """There is no update. ``peak_memory_bytes`` is ``None`` if the process died without reporting it."""

    failure: Failure
    detail: str
    peak_memory_bytes: int | None = None


TrainingEvent = Progress | Noted | Finished | Failed


def failure_of(error: RaffmError) -> Failure:
    """The failure to report to the coordinator for an error that ended a training run or prevented it."""
    kinds = {
        TrainingMemoryError: Failure.OUT_OF_MEMORY,
        StorageError: Failure.STORAGE,
        DataFormatError: Failure.EXAMPLES,
    }
    return next((failure for kind, failure in kinds.items() if isinstance(error, kind)), Failure.TRAINING)
