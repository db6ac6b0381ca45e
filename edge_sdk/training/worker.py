"""The training process: ``python -m edge_sdk.training.worker JOB.json``, started by :mod:`edge_sdk.training.process`.

1. Limit the memory and lower the priority, before anything large is loaded.
2. Compare the job's blobs with their digests.
3. Read and tokenise the examples, so that the tokenizer's memory is free before the graph is loaded.
4. Train; write one line of JSON per step, and a last one with the result or failure: see :mod:`edge_sdk.training.job`.

If its parent has ended, the process ends after the current step. On SIGTERM it ends at once before training has begun;
during training it ends after the current step, with a checkpoint from which the same job resumes.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.errors import ConfigurationError, RaffmError, StorageError, TrainingError
from edge_sdk.training.job import (
    Failed,
    Finished,
    Noted,
    Progress,
    TrainingEvent,
    TrainingJob,
    TrainingResult,
    failure_of,
)
from edge_sdk.training.memory import check_resident, lift_limit, limit_resident, memory_status, out_of_memory
from edge_sdk.transport.blob_folder import is_sound

if TYPE_CHECKING:
    from edge_sdk.elastic.slicing import Array
    from edge_sdk.training.runtime import TrainingRuntime

_NICENESS = 10
_MIN_BYTES = 60 << 20  # for interpreter and libraries; with less, some versions of OpenBLAS retry allocations for ever
# how the dynamic loader says that memory ran out
_NO_MEMORY = ("failed to map segment", "cannot map zero-fill pages", "annot allocate memory")


def main() -> int:
    """Train the job that the first argument names; the exit status."""
    # inherited: an application that waits for its signals on one thread blocks them on all others
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=TrainingJob)
    os.nice(_NICENESS)
    logging.getLogger("edge_sdk").addHandler(_ToTheAgent())
    try:
        if job.memory_limit_bytes < _MIN_BYTES:
            raise out_of_memory(job.memory_limit_bytes, f"the libraries alone take {_MIN_BYTES}")
        limit_resident(job.memory_limit_bytes)
        _emit(Finished(_train(job)))
    except (RaffmError, MemoryError, ImportError, SystemError, OSError) as error:
        lift_limit()
        return _fail(_as_ours(error, job.memory_limit_bytes))
    return 0


def _train(job: TrainingJob) -> TrainingResult:
    from edge_sdk.training.calibration import logit_offset  # noqa: PLC0415 - numpy comes under the limit
    from edge_sdk.training.checkpoint import Checkpoint  # noqa: PLC0415
    from edge_sdk.training.runtime import examples_of, train  # noqa: PLC0415

    if damaged := [blob for blob in job.blobs if not is_sound(Path(blob))]:
        raise StorageError(f"{', '.join(damaged)} changed on the disk since it was fetched: it is fetched again")
    examples = examples_of(job)
    offset = logit_offset(examples.label_counts)
    runtime = _runtime_of(job, offset if job.recipe.calibrate_logits else offset * 0)
    limit_resident(job.memory_limit_bytes)
    checkpoint, parent, asked_to_end = Checkpoint(job), os.getppid(), threading.Event()

    def end_soon(*_: object) -> None:
        checkpoint.hurry()
        asked_to_end.set()

    def on_step(progress: Progress) -> None:
        if asked_to_end.is_set() or os.getppid() != parent:
            raise SystemExit(TrainingError.exit_code)
        check_resident(job.memory_limit_bytes)
        _emit(progress)

    signal.signal(signal.SIGTERM, end_soon)
    return train(runtime, examples, job, on_step, checkpoint)


def _runtime_of(job: TrainingJob, logit_offset: Array) -> TrainingRuntime:
    """The job's runtime. Only that is imported: a device that trains on ONNX needs no torch."""
    if job.runtime is Runtime.ONNX:
        from edge_sdk.training.onnx_runtime import OnnxRuntime  # noqa: PLC0415

        return OnnxRuntime(job, logit_offset)
    try:
        from edge_sdk.training.torch_runtime import TorchRuntime  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"this job trains on torch, and {error.name} is not installed; pip install 'raffm-edge[torch]'"
        ) from error
    return TorchRuntime(job, logit_offset)


def _as_ours(error: Exception, limit_bytes: int) -> RaffmError:
    """The project's error that ``error`` amounts to; running out of memory shows in many ways."""
    if isinstance(error, RaffmError):
        return error
    unmapped = isinstance(error, ImportError) and any(sign in str(error) for sign in _NO_MEMORY)
    starved = isinstance(error, (MemoryError, SystemError)) or getattr(error, "errno", None) == errno.ENOMEM
    if starved or unmapped:
        return out_of_memory(limit_bytes, type(error).__name__)
    return TrainingError(f"training could not run: {error}")


class _ToTheAgent(logging.Handler):
    """Sends what this process logs to the agent's log."""

    def emit(self, record: logging.LogRecord) -> None:
        _emit(Noted(record.levelno, record.getMessage()))


def _fail(error: RaffmError) -> int:
    _emit(Failed(failure_of(error), str(error), memory_status().peak_bytes))
    return error.exit_code


def _emit(event: TrainingEvent) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    os._exit(main())  # a library that ran out of memory may abort while it is torn down
