"""The processor: its model, its speed, whether it is throttled, and how much of it other programs use."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass

import numpy as np
import psutil

from edge_sdk.device.control_group import group_cores
from edge_sdk.device.system import System, or_none

_GEMM_SIZE = 512  # rows and columns of the square matrices that are multiplied
GEMM_S = 1.0  # what a person who asks waits for
BRIEF_GEMM_S = 0.2  # in an agent, which asks for work within a second of its start
_MIN_PRODUCTS = 3
_THROTTLED_BELOW = 0.7  # of the clock that it can hold, under load
_PI_HELD_BACK = 0b1111  # undervoltage, frequency capped, throttled, soft temperature limit; higher bits: since boot
_MIN_INTERVAL_S = 0.1  # between two looks: the kernel counts time in ticks of 10 ms


def cpu_model(system: System) -> str | None:
    """The processor's name, or the board's if the kernel names only that."""
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
    """Measured under load: float32 speed, and the clock as a share of its maximum (``None`` if unknown)."""

    gflops: float
    clock_share: float | None


def measure_speed(system: System, gemm_s: float) -> Speed:
    """The speed of a float32 matrix product on the threads that numpy's BLAS uses: the fastest one within ``gemm_s``.

    The others may have been interrupted by other programs, as happens while a device boots. So at least three are
    made, which takes longer than 0.2 s on a board below 4 GFLOP/s.
    """
    left = np.ones((_GEMM_SIZE, _GEMM_SIZE), dtype=np.float32)
    product, took_s = np.empty_like(left), list[float]()
    while sum(took_s) < gemm_s or len(took_s) < _MIN_PRODUCTS:
        began_s = time.perf_counter()
        np.matmul(left, left, out=product)
        took_s.append(time.perf_counter() - began_s)
    return Speed(2 * _GEMM_SIZE**3 / min(took_s) / 1e9, clock_share(system))


def clock_share(system: System) -> float | None:
    """The clock of the fastest core over the clock that it can sustain; ``None`` if cpufreq does not say.

    That is its base frequency if known, else its maximum. Meaningful under load only, since idle cores clock down.
    """
    shares = []
    for folder in system.matching("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        now = system.number(f"{folder}/scaling_cur_freq")
        held = system.number(f"{folder}/base_frequency") or system.number(f"{folder}/cpuinfo_max_freq")
        if now is not None and held:
            shares.append(now / held)
    return max(shares, default=None)


def is_throttled(system: System, clock_share_under_load: float | None) -> bool | None:
    """Whether heat, a weak supply or a power mode slows the processor: by a Raspberry Pi's firmware, else its clock."""
    flags = _pi_flags(system)
    if flags is not None:
        return bool(flags & _PI_HELD_BACK)
    return None if clock_share_under_load is None else clock_share_under_load < _THROTTLED_BELOW


def _pi_flags(system: System) -> int | None:
    """The bits of ``get_throttled``, from sysfs or from the firmware's tool, which prints "throttled=0x50005"."""
    file = system.text("sys/devices/platform/soc/soc:firmware/get_throttled")
    text = file if file is not None else (system.output("vcgencmd", "get_throttled") or "").partition("=")[2]
    try:
        return int(text, 16)
    except ValueError:
        return None


class OthersLoad:
    """The share of all cores that other programs used between two calls of :meth:`share`.

    That is the work of the whole machine less that of this process and its children.
    """

    def __init__(self) -> None:
        self._cores = psutil.cpu_count() or 1
        self._looked_s, self._work = time.monotonic(), or_none(_work_s)
        self._share: float | None = None

    def share(self) -> float | None:
        """The share since the last call, 0..1; ``None`` in the first tenth of a second, or if it cannot be read."""
        now_s = time.monotonic()
        elapsed_s = now_s - self._looked_s
        if elapsed_s >= _MIN_INTERVAL_S:
            before, self._work = self._work, or_none(_work_s)
            self._share = None
            if before is not None and self._work is not None:
                others_s = (self._work[0] - before[0]) - (self._work[1] - before[1])
                self._share = min(1.0, max(0.0, others_s / (elapsed_s * self._cores)))
            self._looked_s = now_s
        return self._share


def _work_s() -> tuple[float, float]:
    """The work of the whole machine, and of this process, in seconds of processor time."""
    return _busy_s(), _own_s()


def _busy_s() -> float:
    """Seconds that all cores were busy since boot, without the time that a host takes from a virtual machine."""
    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq")  # "guest" is contained in "user"
    return float(sum(getattr(times, name, 0.0) for name in names))


def _own_s() -> float:
    """Processor seconds of this process, its children, and children that have ended."""
    process = psutil.Process()
    total_s = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:  # ended meanwhile; from the next call on its parent counts it
            continue
        total_s += times.user + times.system + getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
    return float(total_s)
