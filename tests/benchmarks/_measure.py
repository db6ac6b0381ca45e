"""What every benchmark shares: medians, the yardstick of a warm copy, and the figure that it ends with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np


@dataclass(frozen=True)
class Figure:
    """The last line of a benchmark; ``figure`` at most ``bar`` is a pass; ``more`` are further keys of its JSON."""

    benchmark: str
    figure: float
    bar: float
    unit: str
    more: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, str | float]:
        values = asdict(self) | {"figure": round(self.figure, 4)}
        return values | values.pop("more")


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def warm_copy(size_bytes: int) -> Callable[[], object]:
    """``np.copyto`` between two buffers of this size that have been touched."""
    source, target = np.ones(size_bytes, np.uint8), np.ones(size_bytes, np.uint8)
    return lambda: np.copyto(target, source)


def side_by_side(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each action; they take turns, so that a busy machine slows all alike."""
    samples: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            samples[name].append(seconds(action))
    return {name: statistics.median(values) for name, values in samples.items()}


def show(title: str, rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in rows)
    print(title)
    for label, value in rows:
        print(f"  {label:<{width}}  {value:>12}")
