"""What the agent and its training process say to each other: a job file in, JSON lines out.

The worker's exit status: 0 after :class:`Finished`, else the ``exit_code`` of the error behind :class:`Failed` (7 where
memory ran out, see :mod:`edge_sdk.errors`).
"""

from __future__ import annotations

import msgspec

from edge_sdk.elastic.submodel import Architecture, Submodel
from edge_sdk.protocol.messages import Count, Failure, Positive, Recipe, Seconds


class TrainingJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training run. The first six are paths; the update is written to ``update``.

    ``examples`` is a file for :func:`edge_sdk.data.read_examples`, all of which is trained on. With ``nested``, a
    prefix of the submodel in the terms of ``architecture``, every step trains that prefix too, see :mod:`.nested`.
    ``memory_limit_bytes`` bounds the process's resident memory, see :mod:`edge_sdk.training.memory`.
    """

    weights: str
    frozen: str
    graph: str
    tokenizer: str
    examples: str
    update: str
    labels: tuple[str, ...]
    recipe: Recipe
    seed: Count
    threads: Positive
    memory_limit_bytes: Positive
    architecture: Architecture
    nested: Submodel | None = None


class TrainingResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was measured. ``samples`` counts each example once; losses are of the first and the last step."""

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


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The update lies where the job wanted it."""

    result: TrainingResult


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """There is no update. ``peak_memory_bytes`` is ``None`` where the process died before it could say."""

    failure: Failure
    detail: str
    peak_memory_bytes: int | None = None


TrainingEvent = Progress | Finished | Failed
