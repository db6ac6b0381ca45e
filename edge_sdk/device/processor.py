"""The processor: what it is, how fast it is, whether something holds it back, and what others take of it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass

import numpy as np
import psutil

from edge_sdk.device.control_group import group_cores
from edge_sdk.device.system import System, or_none

_GEMM_SIZE = 512
_GEMM_S = 0.2
_LEAST_PRODUCTS = 3
_THROTTLED_BELOW = 0.7  # of the clock that it can hold, under load
_PI_HELD_BACK = 0b1111  # undervoltage, frequency capped, throttled, soft temperature limit: now, not since boot
_LEAST_INTERVAL_S = 0.1


def cpu_model(system: System) -> str | None:
    """The processor's name, or the board's where the kernel names only that."""
    lines = (system.text("proc/cpuinfo") or "").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    board = system.text("proc/device-tree/model")
    return next(named, None) or board or platform.processor() or None


def usable_cores(system: System) -> int:
    """Cores that this process may run on, by its affinity and its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, group_cores(system) or allowed)


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured under load: float32 speed, and the clock's share of its highest (``None``: not told)."""

    gflops: float
    clock_share: float | None


def measure_speed(system: System) -> Speed:
    """Speed of a float32 matrix product on the threads that numpy's BLAS uses: the fastest of a fifth of a second.

    The others may have been interrupted by whatever else runs, as it does while a device boots; so there are at least
    three, which take longer on a board below 4 GFLOP/s.
    """
    left = np.ones((_GEMM_SIZE, _GEMM_SIZE), dtype=np.float32)
    product, took_s = np.empty_like(left), list[float]()
    while sum(took_s) < _GEMM_S or len(took_s) < _LEAST_PRODUCTS:
        began_s = time.perf_counter()
        np.matmul(left, left, out=product)
        took_s.append(time.perf_counter() - began_s)
    return Speed(2 * _GEMM_SIZE**3 / min(took_s) / 1e9, clock_share(system))


def clock_share(system: System) -> float | None:
    """The fastest core's clock over the one that it can hold, by cpufreq: its base frequency where told, else its most.

    An idle core clocks down: this tells only under load.
    """
    shares = []
    for folder in system.matching("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        now = system.number(f"{folder}/scaling_cur_freq")
        held = system.number(f"{folder}/base_frequency") or system.number(f"{folder}/cpuinfo_max_freq")
        if now is not None and held:
            shares.append(now / held)
    return max(shares, default=None)


def is_throttled(system: System, clock_share_under_load: float | None) -> bool | None:
    """Whether heat, a weak supply or a power mode holds it back: a Raspberry Pi's firmware says it, else the clock."""
    flags = _pi_flags(system)
    if flags is not None:
        return bool(flags & _PI_HELD_BACK)
    return None if clock_share_under_load is None else clock_share_under_load < _THROTTLED_BELOW


def _pi_flags(system: System) -> int | None:
    """The bits of ``get_throttled``, from sysfs or from the firmware's own tool ("throttled=0x50005")."""
    file = system.text("sys/devices/platform/soc/soc:firmware/get_throttled")
    text = file if file is not None else (system.output("vcgencmd", "get_throttled") or "").partition("=")[2]
    try:
        return int(text, 16)
    except ValueError:
        return None


class OthersLoad:
    """How much of all cores others took between two looks: all work less that of this process and its children."""

    def __init__(self) -> None:
        self._cores = psutil.cpu_count() or 1
        self._looked_s, self._work = time.monotonic(), or_none(_work_s)
        self._share: float | None = None

    def share(self) -> float | None:
        """Since the last look, 0..1; ``None`` before enough time has passed since the first, or where nobody says."""
        now_s = time.monotonic()
        elapsed_s = now_s - self._looked_s
        if elapsed_s >= _LEAST_INTERVAL_S:
            before, self._work = self._work, or_none(_work_s)
            self._share = None
            if before is not None and self._work is not None:
                others_s = (self._work[0] - before[0]) - (self._work[1] - before[1])
                self._share = min(1.0, max(0.0, others_s / (elapsed_s * self._cores)))
            self._looked_s = now_s
        return self._share


def _work_s() -> tuple[float, float]:
    """Of all, and of that what is this process's."""
    return _busy_s(), _own_s()


def _busy_s() -> float:
    """Seconds of all cores at work since boot; what a host takes from a virtual machine is nobody's work here."""
    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq")  # "guest" is contained in "user"
    return float(sum(getattr(times, name, 0.0) for name in names))


def _own_s() -> float:
    """The same of this process, its children, and those that have ended."""
    process = psutil.Process()
    total_s = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:  # ended meanwhile; from the next look on it counts among the ended
            continue
        total_s += times.user + times.system + getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
    return float(total_s)
