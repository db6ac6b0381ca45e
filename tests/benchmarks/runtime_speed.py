"""Milliseconds of a training step over torch's and peft's: MiniLM with adapters, one thread each.

LoRA of rank 8 on the queries and values, batches of 8 x 32 tokens. The two take turns; the figure is the median over
the turns of the ratio of their median steps, so that a busy machine slows both alike.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks._measure import Figure, show
from tests.benchmarks._runtimes import ADAPTERS, compare

BAR = 1.0
_REPEATS = 3


def run() -> Figure:
    with tempfile.TemporaryDirectory() as name:
        sides = compare(Path(name), ADAPTERS, _REPEATS)
    rows = [("training process", str(sides.ours)), ("torch, transformers, peft", str(sides.torch))]
    show(f"MiniLM with adapters, {ADAPTERS}; medians of {_REPEATS} processes", rows)
    return Figure("runtime_speed", sides.step_ratio, BAR, "milliseconds a step over torch and peft")
