"""What a day's budgets have left, through restarts and through clocks that jump.

A budget is renewed at local midnight, by rules that hold whatever happens to the clock on the wall:

1. While the agent runs, time passes by a clock that nobody sets. When a day begins, the time to its end is worked out
   once, and a step of the wall clock changes nothing of it.
2. A day lasts at least 12 hours: it ends at the first local midnight that is at least so far off. So two budgets are
   never closer than 12 hours of the agent's life, and none lasts longer than 37 (a day on which the hour changes).
3. Across a restart the wall clock tells what passed. Less than nothing counts as nothing, so a clock that was set back
   keeps what was spent, and the day still ends by rule 1. A board without a clock of its own starts with an old time
   and learns the right one soon after: the wall clock is believed until ten minutes after a start, or the first
   renewal.

A clock that is half a day fast at a start can therefore renew the budgets early, once a start, and the log says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.device.policy import Spent

_log = logging.getLogger(__name__)
_SHORTEST_DAY_S = 12 * 3600.0
_LEARNS_TIME_S = 600.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """Both clocks read at once, in seconds: since the epoch, and since an instant that nothing moves."""

    wall_s: float
    steady_s: float

    @classmethod
    def now(cls) -> Clocks:
        """What they read now; the steady one counts while the machine sleeps too, where the kernel has such a one."""
        clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        return cls(time.time(), time.clock_gettime(clock))

    @property
    def minute(self) -> int:
        """Of the local day, 0..1439."""
        local = time.localtime(self.wall_s)
        return 60 * local.tm_hour + local.tm_min


class Ledger:
    """Keeps count. ``kept`` looks up what :meth:`numbers` gave before the agent was restarted, by name."""

    def __init__(self, now: Clocks, kept: Callable[[str], float | None] = lambda _: None) -> None:
        left_s = kept("day_left_s")
        self._spent = Spent(kept("day_energy_wh") or 0.0, int(kept("day_bytes") or 0))
        self._left_s = seconds_to_renewal(now.wall_s) if left_s is None else left_s
        self._kept_wall_s = kept("day_wall_s")
        self._passed_s = 0.0
        self._started_s = now.steady_s
        self._now = now
        self.pass_time(now)

    @property
    def spent(self) -> Spent:
        """Since the budgets were renewed."""
        return self._spent

    def pass_time(self, now: Clocks) -> None:
        """Let the day end where it is time."""
        passed_s = max(0.0, now.steady_s - self._now.steady_s)
        if self._kept_wall_s is not None and now.steady_s - self._started_s <= _LEARNS_TIME_S:
            passed_s = max(passed_s, now.wall_s - self._kept_wall_s - self._passed_s)
        self._now = now
        self._passed_s += passed_s
        self._left_s -= passed_s
        if self._left_s <= 0:
            _log.info("the day's budgets are renewed; used were %s", self._spent)
            self._spent = Spent()
            self._left_s, self._kept_wall_s = seconds_to_renewal(now.wall_s), None

    def spend(self, *, energy_wh: float = 0.0, transferred_bytes: int = 0) -> None:
        """Count what was used."""
        self._spent = Spent(self._spent.energy_wh + energy_wh, self._spent.transferred_bytes + transferred_bytes)

    def numbers(self) -> dict[str, float]:
        """What has to be kept."""
        return {
            "day_energy_wh": self._spent.energy_wh,
            "day_bytes": float(self._spent.transferred_bytes),
            "day_left_s": self._left_s,
            "day_wall_s": self._now.wall_s,
        }


def seconds_to_renewal(wall_s: float) -> float:
    """From ``wall_s`` to the first local midnight that is at least 12 hours off."""
    earliest = time.localtime(wall_s + _SHORTEST_DAY_S)
    midnight = (earliest.tm_year, earliest.tm_mon, earliest.tm_mday + 1, 0, 0, 0, 0, 0, -1)
    return time.mktime(midnight) - wall_s
