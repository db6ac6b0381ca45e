"""How much of a day's budgets has been spent, across restarts and clocks that jump.

Budgets are renewed at local midnight, by rules that hold whatever happens to the wall clock:

1. While the agent runs, time is measured by a clock that nobody sets. The time left to the end of a day is computed
   once, when the day begins; later steps of the wall clock do not change it.
2. A day lasts at least 12 hours: it ends at the first local midnight that is at least that far away. So two renewals
   are at least 12 hours of running time apart, and at most 37 (on a day when the clocks change).
3. Across a restart, the wall clock says how much time has passed. A negative time counts as zero, so after a clock was
   set back the spent budgets remain, and the day still ends by rule 1. A board without a battery-backed clock starts
   with an old time and learns the right one soon after: so the wall clock is consulted until ten minutes after a start,
   or until the first renewal.

So a clock that is half a day fast at a start can renew the budgets early, once per start; the log says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.device.policy import Spent

_log = logging.getLogger(__name__)
_SHORTEST_DAY_S = 12 * 3600.0  # rule 2
_LEARNS_TIME_S = 600.0  # rule 3


@dataclass(frozen=True, slots=True)
class Clocks:
    """Both clocks, read together, in seconds: the wall clock since 1970, and one that is never set."""

    wall_s: float
    steady_s: float

    @classmethod
    def now(cls) -> Clocks:
        """The clocks' readings now; the steady one also counts while the machine sleeps, if the kernel has such one."""
        clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        return cls(time.time(), time.clock_gettime(clock))

    @property
    def minute(self) -> int:
        """The minute of the local day, 0..1439."""
        local = _local(self.wall_s)
        return 60 * local.tm_hour + local.tm_min


class Ledger:
    """Counts what is spent. ``kept`` looks up, by name, what :meth:`numbers` returned before a restart."""

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
        """What was spent since the budgets were renewed."""
        return self._spent

    def pass_time(self, now: Clocks) -> None:
        """Advance to ``now``, and renew the budgets if the day has ended."""
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
        """What has to survive a restart, by name."""
        return {
            "day_energy_wh": self._spent.energy_wh,
            "day_bytes": float(self._spent.transferred_bytes),
            "day_left_s": self._left_s,
            "day_wall_s": self._now.wall_s,
        }


def seconds_to_renewal(wall_s: float) -> float:
    """The seconds from ``wall_s`` to the first local midnight that is at least 12 hours away."""
    earliest = _local(wall_s + _SHORTEST_DAY_S)
    midnight = (earliest.tm_year, earliest.tm_mon, earliest.tm_mday + 1, 0, 0, 0, 0, 0, -1)
    return time.mktime(midnight) - wall_s


def _local(wall_s: float) -> time.struct_time:
    """The local time, in the time zone that is set now: the C library reads it once, and a board may get it later."""
    time.tzset()
    return time.localtime(wall_s)
