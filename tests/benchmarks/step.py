"""Time of a training step at a quarter of the width over one at full width, over the ratio of their FLOPs.

MiniLM above its frozen embeddings, batches of 16 x 32 tokens, one thread, each in the agent's own training process; the
two take turns. 1 would mean that a narrow step wastes nothing: small matrices are multiplied at a lower rate, and what
does not shrink with the width (embeddings, norms, residuals, the copies around them) weighs more. FLOPs are those that
the planner counts, in matrices; what is not a matrix product is none.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from edge_sdk.elastic.submodel import Submodel, TrainablePart, uniform
from edge_sdk.training.job import Finished, Progress, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from tests.benchmarks._cost_models import Subject, minilm
from tests.benchmarks._cost_processes import Training, training_job
from tests.benchmarks._fleet import say
from tests.benchmarks._measure import Figure, show

BAR = 1.1
_REPEATS, _STEPS, _SHARE = 11, 12, 0.25


def run() -> Figure:
    with tempfile.TemporaryDirectory() as name:
        subjects = {share: minilm(Path(name) / str(share)) for share in (1.0, _SHARE)}
        jobs = {share: training_job(subject, _training(subject, share), _STEPS) for share, subject in subjects.items()}
        turns = [_turn(jobs, number) for number in range(1, _REPEATS + 1)]
    whole, narrow = (_flops(subjects[share], share) for share in (1.0, _SHARE))
    ratios = [turn[_SHARE] / turn[1.0] for turn in turns]
    rows = [(f"width {share}", f"{statistics.median(turn[share] for turn in turns):.0f} ms a step") for share in jobs]
    rows += [("ratio of times", f"{statistics.median(ratios):.3f}"), ("ratio of FLOPs", f"{narrow / whole:.3f}")]
    show(f"MiniLM above its embeddings, {_STEPS} steps; medians of {_REPEATS} processes each", rows)
    return Figure("step", statistics.median(ratios) * whole / narrow, BAR, "ratio of times over ratio of FLOPs")


def _training(subject: Subject, share: float) -> Training:
    return Training(_submodel(subject, share))


def _submodel(subject: Subject, share: float) -> Submodel:
    architecture = subject.foundation.architecture
    return uniform(architecture, round(share * architecture.heads))


def _flops(subject: Subject, share: float) -> int:
    part, tokens = TrainablePart.NO_EMBEDDINGS, _training(subject, share).max_tokens
    return subject.costs.training_flops(_submodel(subject, share), part, samples=1, max_tokens=tokens)


def _turn(jobs: dict[float, TrainingJob], number: int) -> dict[float, float]:
    """Milliseconds a step of each, one process after the other."""
    say(f"  {number} of {_REPEATS}")
    return {share: _step_ms(job) for share, job in jobs.items()}


def _step_ms(job: TrainingJob) -> float:
    """The median time from one report to the next."""
    events: list[tuple[float, TrainingEvent]] = []
    TrainingProcess(job, lambda event: events.append((time.perf_counter(), event))).wait()
    assert isinstance(events[-1][1], Finished), events[-1]
    told_s = [at_s for at_s, event in events if isinstance(event, Progress)]
    return 1e3 * statistics.median(after - before for before, after in pairwise(told_s))
