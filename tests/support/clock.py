"""Wall clocks that are wrong, for tests: by years, or by other years at every look."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

TEN_YEARS_S = 10 * 365 * 86400.0
_real = time.time


def skewed(by_s: float) -> Callable[[], float]:
    """In place of :func:`time.time`: wrong by so many seconds."""
    return lambda: _real() + by_s


def jumping(seed: int) -> Callable[[], float]:
    """In place of :func:`time.time`: wrong by up to ten years, this way or that, and differently at every look."""
    drawn = random.Random(seed)
    return lambda: _real() + drawn.uniform(-TEN_YEARS_S, TEN_YEARS_S)
