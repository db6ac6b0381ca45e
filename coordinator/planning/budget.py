"""What one device may spend on one offer, from its snapshot and from what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.protocol.messages import Snapshot

OUT_OF_MEMORY_SHRINK = 0.8
COST_MODEL_ERROR = 0.05  # by what share a process may peak above its prediction


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of peak memory, and floating-point operations for each sample; ``None`` where the speed is not known."""

    memory_bytes: int
    flops_per_sample: float | None = None


def training_budget(
    snapshot: Snapshot, *, memory_factor: float = 1.0, deadline_s: float | None = None, samples: int | None = None
) -> Budget:
    """What may be spent on training: the device's own limit, and its speed for ``deadline_s`` on ``samples`` texts.

    ``memory_factor`` is the device's, below 1 where the memory model has been too hopeful of it: see
    :func:`shrunk`. What the cost model may be off by is kept free.
    Without a measured speed, a deadline or a number of samples, time does not count.
    """
    flops = None
    if snapshot.gflops is not None and deadline_s is not None and samples:
        flops = snapshot.gflops * 1e9 * deadline_s / samples
    return Budget(int(snapshot.training_memory_bytes * memory_factor * (1 - COST_MODEL_ERROR)), flops)


def inference_budget(snapshot: Snapshot, *, memory_factor: float = 1.0) -> Budget:
    """What may be spent on inference."""
    return Budget(int(snapshot.inference_memory_bytes * memory_factor))


def shrunk(memory_factor: float) -> float:
    """A device's memory factor after it ran out of memory once more; it does not recover by itself."""
    return memory_factor * OUT_OF_MEMORY_SHRINK
