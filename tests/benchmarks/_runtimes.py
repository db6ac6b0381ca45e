"""One training job on the agent's own process and on torch's, taking turns: peak memory, time of a step, losses."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from transformers.utils.logging import disable_progress_bar

from coordinator.demo.inputs import packaged_texts
from coordinator.models.torch_modules import torch_module
from edge_sdk.elastic.submodel import Adapters, TrainablePart, full
from edge_sdk.training.job import Finished, Progress, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from tests.benchmarks._cost_models import Subject, minilm
from tests.benchmarks._cost_processes import Training, training_job
from tests.benchmarks._fleet import say
from tests.benchmarks._torch_training import TorchRun

_TEXTS = 256
_MIB = 1 << 20
_MOST_DIFFERENT = 1e-2


@dataclass(frozen=True, slots=True)
class Measured:
    """One process, or the medians of several: its peak, the time of a step after the first, first and last loss."""

    peak_mib: float
    step_ms: float
    losses: tuple[float, float]

    def __str__(self) -> str:
        first, last = self.losses
        return f"{self.peak_mib:.0f} MiB, {self.step_ms:.0f} ms a step, loss {first:.4f} to {last:.4f}"


@dataclass(frozen=True, slots=True)
class Sides:
    """The same training on both; ``torch`` has peft imported or at work, ``step_ratio`` is the median of the turns'."""

    ours: Measured
    torch: Measured
    step_ratio: float


@dataclass(frozen=True, slots=True)
class Load:
    """What is trained of all of MiniLM, in what batches, for how many steps."""

    part: TrainablePart
    batch_size: int
    steps: int
    adapters: Adapters | None = None
    max_tokens: int = 32

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.batch_size} x {self.max_tokens} tokens, one thread"


ADAPTERS = Load(TrainablePart.ADAPTERS, batch_size=8, steps=12, adapters=Adapters())
"""LoRA of rank 8 on the queries and values, and the head."""
ALL_BUT_EMBEDDINGS = Load(TrainablePart.NO_EMBEDDINGS, batch_size=16, steps=8)


def compare(folder: Path, load: Load, repeats: int) -> Sides:
    """Both sides ``repeats`` times, each in a fresh process; ``RuntimeError`` where they do different work."""
    model = _save_base(folder)
    texts = packaged_texts()
    chosen = np.random.default_rng(0).permutation(len(texts))[:_TEXTS].tolist()
    subject = replace(minilm(folder / "subject", load.adapters), examples=texts.take(chosen))
    job = _job(subject, load)
    turns = []
    for number in range(1, repeats + 1):
        say(f"  {load.part.value}, {number} of {repeats}")
        turns.append((_ours(job), _torch(job, folder / "job.json", model)))
    ours, torch = (_median(side) for side in zip(*turns, strict=True))
    _check_same_work(ours, torch)
    return Sides(ours, torch, statistics.median(mine.step_ms / theirs.step_ms for mine, theirs in turns))


def _job(subject: Subject, load: Load) -> TrainingJob:
    """Logits are not calibrated, since torch's side does not either."""
    training = Training(full(subject.foundation.architecture), load.part, load.batch_size, load.max_tokens)
    job = training_job(subject, training, load.steps)
    return msgspec.structs.replace(job, recipe=msgspec.structs.replace(job.recipe, calibrate_logits=False))


def _save_base(folder: Path) -> Path:
    """The model without adapters, as Hugging Face saves it."""
    disable_progress_bar()
    subject: Subject = minilm(folder / "base")
    torch_module(subject.foundation).save_pretrained(folder / "model")
    return folder / "model"


def _median(runs: Sequence[Measured]) -> Measured:
    peak_mib = statistics.median(run.peak_mib for run in runs)
    return Measured(peak_mib, statistics.median(run.step_ms for run in runs), runs[0].losses)


def _ours(job: TrainingJob) -> Measured:
    """The agent's own training process; a step is timed from one report to the next."""
    events: list[tuple[float, TrainingEvent]] = []
    TrainingProcess(job, lambda event: events.append((time.perf_counter(), event))).wait()
    last = events[-1][1]
    assert isinstance(last, Finished), last
    told_s = [at_s for at_s, event in events if isinstance(event, Progress)]
    step_ms = 1e3 * statistics.median(after - before for before, after in pairwise(told_s))
    return Measured(last.result.peak_memory_bytes / _MIB, step_ms, (last.result.loss_first, last.result.loss_last))


def _torch(job: TrainingJob, job_file: Path, model: Path) -> Measured:
    job_file.write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-m", "tests.benchmarks._torch_training", str(job_file), str(model), "--peft"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    made = msgspec.json.decode(output, type=TorchRun)
    step_ms = 1e3 * statistics.median(made.step_s[1:])
    return Measured(made.peak_bytes / _MIB, step_ms, (made.losses[0], made.losses[-1]))


def _check_same_work(ours: Measured, torch: Measured) -> None:
    """The first loss says that model and batch are the same, the last that the optimizer is too."""
    differences = [abs(a - b) / b for a, b in zip(ours.losses, torch.losses, strict=True)]
    if max(differences) > _MOST_DIFFERENT:
        raise RuntimeError(f"losses {ours.losses} are not torch's {torch.losses}: the two do different work")
