"""The training process: ``python -m edge_sdk.training.worker JOB.json``, started by :mod:`edge_sdk.training.process`.

1. Limit the memory and lower the priority, before anything large is loaded.
2. Read and tokenise the examples, so that the tokenizer is gone before the graph is there.
3. Train; one line of JSON a step, and a last one with the result or the failure, see :mod:`edge_sdk.training.job`.

It ends by itself at the next step once its parent is gone, and at once on SIGTERM.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import msgspec

from edge_sdk.errors import RaffmError, TrainingError, TrainingMemoryError
from edge_sdk.protocol.messages import Failure
from edge_sdk.training.job import Failed, Finished, Progress, TrainingEvent, TrainingJob, TrainingResult
from edge_sdk.training.memory import check_resident, lift_limit, limit_resident, memory_status, out_of_memory

_NICENESS = 10
_NO_MEMORY = ("failed to map segment", "annot allocate memory")  # what the dynamic loader says


def main() -> int:
    """Train the job that the first argument names; the exit status."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=TrainingJob)
    os.nice(_NICENESS)
    try:
        limit_resident(job.memory_limit_bytes)
        _emit(Finished(_train(job)))
    except (RaffmError, MemoryError, ImportError, SystemError, OSError) as error:
        lift_limit()
        return _fail(_as_ours(error, job.memory_limit_bytes))
    return 0


def _train(job: TrainingJob) -> TrainingResult:
    from edge_sdk.data import read_examples  # noqa: PLC0415 - numpy and the runtime come under the limit
    from edge_sdk.training.data import encode_examples, logit_offset  # noqa: PLC0415
    from edge_sdk.training.runtime import train  # noqa: PLC0415

    tokenizer_json = Path(job.tokenizer).read_bytes()
    examples = encode_examples(read_examples(Path(job.examples)), job.labels, tokenizer_json, job.recipe.max_tokens)
    offset = logit_offset(examples.labels, len(job.labels))
    from edge_sdk.training.onnx_runtime import OnnxRuntime  # noqa: PLC0415

    runtime = OnnxRuntime(job, offset if job.recipe.calibrate_logits else offset * 0)
    limit_resident(job.memory_limit_bytes)
    parent = os.getppid()

    def on_step(progress: Progress) -> None:
        if os.getppid() != parent:
            raise SystemExit(TrainingError.exit_code)
        check_resident(job.memory_limit_bytes)
        _emit(progress)

    return train(runtime, examples, job, on_step)


def _as_ours(error: Exception, limit_bytes: int) -> RaffmError:
    """The error of the tree that ``error`` amounts to: what fails for want of memory comes under many names."""
    if isinstance(error, RaffmError):
        return error
    unmapped = isinstance(error, ImportError) and any(sign in str(error) for sign in _NO_MEMORY)
    starved = isinstance(error, (MemoryError, SystemError)) or getattr(error, "errno", None) == errno.ENOMEM
    if starved or unmapped:
        return out_of_memory(limit_bytes, type(error).__name__)
    return TrainingError(f"training could not run: {error}")


def _fail(error: RaffmError) -> int:
    failure = Failure.OUT_OF_MEMORY if isinstance(error, TrainingMemoryError) else Failure.TRAINING
    _emit(Failed(failure, str(error), memory_status().peak_bytes))
    return error.exit_code


def _emit(event: TrainingEvent) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    os._exit(main())  # a library that ran out of memory may abort while it is torn down
