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
    """Bytes of peak memory, and floating-point operations for each sample; ``None`` where the speed is not known.

    ``flops_per_byte`` is how many of these a byte on the wire costs, in time: 0 where the link's speed is not known.
    ``steps`` is how many a round has, ``None`` where the number of samples is not known.
    """

    memory_bytes: int
    flops_per_sample: float | None = None
    flops_per_byte: float = 0.0
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a device trains: ``flops`` for each of its samples and second, and the ``steps`` of its whole round."""

    flops: float
    steps: int | None


def training_budget(
    snapshot: Snapshot, *, memory_factor: float = 1.0, deadline_s: float | None = None, pace: Pace | None = None
) -> Budget:
    """What may be spent on training: the device's own limit, and its ``pace`` for most of ``deadline_s``.

    ``memory_factor`` is the device's, below 1 where the memory model has been too hopeful of it: see
    :func:`shrunk`. What the cost model may be off by is kept free. The ``pace`` is what the device has shown, or
    :func:`estimated_pace`. Without a pace or a deadline, time does not count.
    """
    memory_bytes = int(snapshot.training_memory_bytes * memory_factor * (1 - COST_MODEL_ERROR))
    if pace is None or deadline_s is None:
        return Budget(memory_bytes)
    link = snapshot.link_bytes_per_s
    flops_per_byte = pace.flops / link if link else 0.0
    return Budget(memory_bytes, DEADLINE_SHARE * deadline_s * pace.flops, flops_per_byte, pace.steps)


def estimated_pace(snapshot: Snapshot, recipe: Recipe) -> Pace | None:
    """By the speed that a device has measured, where the recipe says how many samples it passes in a round.

    ``None`` where it passes all that the device has, whose number only its first update tells, or without a speed.
    """
    if snapshot.gflops is None or recipe.max_steps is None:
        return None
    passes = recipe.max_steps * recipe.batch_size / recipe.epochs  # over as many samples
    return Pace(TRAINING_EFFICIENCY * snapshot.gflops * 1e9 / passes, recipe.max_steps)


def measured_pace(report: TrainingReport, recipe: Recipe, flops_per_sample: float) -> Pace | None:
    """By what the last round took, of a submodel that costs ``flops_per_sample`` a round; ``None`` of next to no time.

    The device may have been asked for fewer steps than the ``recipe`` has.
    """
    if report.seconds < _LEAST_S:
        return None
    steps = recipe.steps(report.samples)
    return Pace(flops_per_sample * report.steps / steps / report.seconds, steps)


def late_pace(before: Pace | None, recipe: Recipe, flops_per_sample: float, seconds: float) -> Pace:
    """Of a device whose round was over before it had trained what costs ``flops_per_sample``: half of what that took.

    Half of the pace before, where there is one: it is slower now.
    """
    if before is None:
        return Pace(LATE_SHRINK * flops_per_sample / seconds, recipe.max_steps)
    return Pace(LATE_SHRINK * before.flops, before.steps)


def inference_budget(snapshot: Snapshot) -> Budget:
    """What may be spent on inference: the device's own limit."""
    return Budget(snapshot.inference_memory_bytes)


def shrunk(memory_factor: float) -> float:
    """A device's memory factor after it ran out of memory once more; it does not recover by itself."""
    return memory_factor * OUT_OF_MEMORY_SHRINK
