"""Checkpoints, from which a training run resumes after its process has ended; written atomically from time to time.

A checkpoint is a tensor file with the runtime's state, the run's progress, and a digest of the job. A job that finds
another job's checkpoint removes it. If the disk refuses, the checkpoint is lost, but training goes on.
"""

from __future__ import annotations

import hashlib
import mmap
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_sdk.disk import disk_errors
from edge_sdk.errors import StorageError
from edge_sdk.training.files import read_sealed, write_whole
from edge_sdk.training.job import TrainingJob

_IDENTITY, _COUNTS, _LOSSES = "job", "counts", "losses"
_NOBODY = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Trained:
    """A run's progress; losses are those of the first and the last step."""

    steps: int = 0
    loss_first: float = 0.0
    loss_last: float = 0.0
    seconds: float = 0.0

    def after(self, loss: float, seconds: float) -> Trained:
        """The progress after one more step, which took ``seconds``."""
        return Trained(self.steps + 1, self.loss_first if self.steps else loss, loss, self.seconds + seconds)


class Checkpoint:
    """The checkpoint of ``job``. If the job names no file, it is never due, and never exists."""

    def __init__(self, job: TrainingJob) -> None:
        self._path = Path(job.checkpoint) if job.checkpoint else None
        self._identity = _identity_of(job) if job.checkpoint else _NOBODY
        self._interval_s, self._saved_s = job.checkpoint_interval_s, time.monotonic()

    def hurry(self) -> None:
        """Make a checkpoint due at the end of the current step; safe in a signal handler."""
        self._interval_s = 0.0

    def is_due(self, step_s: float) -> bool:
        """Whether the interval since the last checkpoint is over, or would be after another step of ``step_s``."""
        return self._path is not None and time.monotonic() - self._saved_s + step_s >= self._interval_s

    def save(self, state: Mapping[str, NDArray[Any]], trained: Trained) -> None:
        """Replace the last checkpoint; if the disk refuses, none is left."""
        if self._path is None:
            return
        counts = np.array([trained.steps, round(1000 * trained.seconds)], dtype=np.int64)
        losses = np.array([trained.loss_first, trained.loss_last], dtype=np.float32)
        try:
            write_whole(self._path, {_IDENTITY: self._identity, _COUNTS: counts, _LOSSES: losses, **state}, sealed=True)
        except StorageError:
            self._remove()
        self._saved_s = time.monotonic()

    def load(self) -> tuple[Trained, Iterator[tuple[str, NDArray[Any]]]] | None:
        """This job's progress and its runtime's state; ``None`` if it has to start from the beginning.

        Each array of the state stays in memory only until the next one is requested.
        """
        if self._path is None:
            return None
        found = read_sealed(self._path)
        if found is None:
            return None
        tensors, pages = found
        if not np.array_equal(tensors.pop(_IDENTITY, _NOBODY), self._identity):
            self._remove()
            return None
        (steps, milliseconds), (first, last) = tensors.pop(_COUNTS), tensors.pop(_LOSSES)
        trained = Trained(int(steps), float(first), float(last), int(milliseconds) / 1000)
        return trained, _one_by_one(tensors, pages)

    def _remove(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)


def _one_by_one(tensors: Mapping[str, NDArray[Any]], pages: mmap.mmap) -> Iterator[tuple[str, NDArray[Any]]]:
    for item in tensors.items():
        yield item
        pages.madvise(mmap.MADV_DONTNEED)


def _identity_of(job: TrainingJob) -> NDArray[np.int64]:
    """A digest of everything that determines a run: the job, except limits and paths that may change, and its examples.

    Paths of blobs contain their digests, so their content need not be read.
    """
    where = dict.fromkeys(("update", "checkpoint", "examples", "residual", "new_residual"), "")
    how = {"threads": 1, "memory_limit_bytes": 1, "providers": None}
    digest = hashlib.sha256(msgspec.msgpack.encode(msgspec.structs.replace(job, **where, **how)))
    with disk_errors(Path(job.examples)), Path(job.examples).open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return np.frombuffer(digest.digest(), dtype=np.int64)
