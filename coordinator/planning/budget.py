"""What a device may spend on one offer, derived from its snapshot and from its earlier rounds."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.protocol.messages import Recipe, Snapshot, TrainingReport

OUT_OF_MEMORY_SHRINK = 0.8
COST_MODEL_ERROR = 0.05  # by what share a process may peak above its prediction
DEADLINE_SHARE = 0.8  # of a round's time that is planned for; the rest is for what else happens in it
TRAINING_EFFICIENCY = 0.5  # of the speed of a large matrix product, what a training step is expected to reach
LATE_SHRINK = 0.5
_LEAST_S = 1e-3  # a round that took less tells no speed


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one offer: bytes of peak memory, and FLOPs per sample (``None`` if the device's speed is unknown).

    ``flops_per_byte`` converts traffic into time: the FLOPs that the device computes while it transfers one byte, 0 if
    the speed of its link is unknown. ``steps`` is the number of steps in a round, ``None`` if the number of samples is
    unknown.
    """

    memory_bytes: int
    flops_per_sample: float | None = None
    flops_per_byte: float = 0.0
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """A device's training speed: ``flops`` per sample and second, and the ``steps`` of a whole round."""

    flops: float
    steps: int | None


def training_budget(
    snapshot: Snapshot, *, memory_factor: float = 1.0, deadline_s: float | None = None, pace: Pace | None = None
) -> Budget:
    """The budget for training: the device's own memory limit, and what it computes in most of ``deadline_s``.

    ``memory_factor`` scales the memory limit; it is below 1 if the device ran out of memory before (:func:`shrunk`).
    A margin for the error of the cost model is left free. ``pace`` is the measured one or :func:`estimated_pace`.
    Without a pace or a deadline, time is not limited.
    """
    memory_bytes = int(snapshot.training_memory_bytes * memory_factor * (1 - COST_MODEL_ERROR))
    if pace is None or deadline_s is None:
        return Budget(memory_bytes)
    link = snapshot.link_bytes_per_s
    flops_per_byte = pace.flops / link if link else 0.0
    return Budget(memory_bytes, DEADLINE_SHARE * deadline_s * pace.flops, flops_per_byte, pace.steps)


def estimated_pace(snapshot: Snapshot, recipe: Recipe) -> Pace | None:
    """The pace of a device that has not trained yet, from its benchmark and the recipe's number of steps.

    ``None`` if the device has no benchmark, or if the recipe does not limit the steps: then a round passes over all of
    the device's samples, and only its first update tells how many there are.
    """
    if snapshot.gflops is None or recipe.max_steps is None:
        return None
    passes = recipe.max_steps * recipe.batch_size / recipe.epochs  # over as many samples
    return Pace(TRAINING_EFFICIENCY * snapshot.gflops * 1e9 / passes, recipe.max_steps)


def measured_pace(report: TrainingReport, recipe: Recipe, flops_per_sample: float) -> Pace | None:
    """The pace in the last round, whose submodel costs ``flops_per_sample``; ``None`` if it took next to no time.

    The device may have been asked for fewer steps than the ``recipe`` has.
    """
    if report.seconds < _LEAST_S:
        return None
    steps = recipe.steps(report.samples)
    return Pace(flops_per_sample * report.steps / steps / report.seconds, steps)


def late_pace(before: Pace | None, recipe: Recipe, flops_per_sample: float, seconds: float) -> Pace:
    """The assumed pace of a device that missed the deadline after ``seconds``.

    It is half of its earlier pace or, without one, half of the pace that would just have met the deadline with a
    submodel that costs ``flops_per_sample``.
    """
    if before is None:
        return Pace(LATE_SHRINK * flops_per_sample / seconds, recipe.max_steps)
    return Pace(LATE_SHRINK * before.flops, before.steps)


def inference_budget(snapshot: Snapshot) -> Budget:
    """The budget for inference: the device's own memory limit."""
    return Budget(snapshot.inference_memory_bytes)


def shrunk(memory_factor: float) -> float:
    """The memory factor of a device that ran out of memory once more; it never rises again by itself."""
    return memory_factor * OUT_OF_MEMORY_SHRINK
