"""What this machine can spare now, as psutil and the kernel say it; what cannot be read is ``None``, never a guess.

A profile's limits hold where there is one. Without one the agent may take a quarter of the memory for training and an
eighth for inference. Either way never more than what is available now, less ``RESERVE_BYTES`` for everybody else.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import numpy as np
import psutil

from edge_sdk.device.battery import Battery
from edge_sdk.device.profile import MIB, DeviceProfile
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.protocol.messages import Snapshot

RESERVE_BYTES = 64 * MIB
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
_GEMM_SIZE = 512
_GEMM_S = 0.2


def take_snapshot(
    profile: DeviceProfile | None,
    battery: Battery,
    folder: Path,
    *,
    gflops: float | None = None,
    runtime: Runtime = Runtime.ONNX,
) -> Snapshot:
    """Measure now. ``folder`` is where the agent keeps its state; ``gflops`` was measured before, once.

    ``runtime`` is the owner's choice.
    """
    total, available = _memory_bytes()
    spare = max(0, available - RESERVE_BYTES)
    if profile is None:
        training, inference, threads = total // 4, total // 8, _cores()
    else:
        limits = profile.limits
        total = min(total, profile.memory_total_mib * MIB)
        training, inference = limits.training_memory_mib * MIB, limits.inference_memory_mib * MIB
        threads = min(limits.threads, _cores())
    return Snapshot(
        memory_total_bytes=total,
        memory_available_bytes=min(available, total),
        training_memory_bytes=min(training, spare),
        inference_memory_bytes=min(inference, spare),
        threads=threads,
        disk_free_bytes=_disk_free_bytes(folder),
        battery_share=battery.share(),
        charging=battery.charging(),
        temperature_c=_temperature_c(),
        gflops=gflops,
        runtime=runtime,
    )


def measure_gflops() -> float:
    """Speed of a float32 matrix product on the threads that numpy's BLAS uses, for a fifth of a second."""
    left = np.ones((_GEMM_SIZE, _GEMM_SIZE), dtype=np.float32)
    product = left @ left
    products, started_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < _GEMM_S:
        np.matmul(left, left, out=product)
        products += 1
    return 2 * _GEMM_SIZE**3 * products / elapsed_s / 1e9


def cpu_model() -> str | None:
    """The processor's name, where the kernel or the platform knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, None) or platform.processor() or None


def _memory_bytes() -> tuple[int, int]:
    """Total and available, of the machine or of the control group that this process lives in, whichever is less."""
    memory = psutil.virtual_memory()
    limit, used = _first_number(_CGROUP_LIMITS), _first_number(_CGROUP_USED)
    if limit is None or used is None or limit >= memory.total:
        return memory.total, memory.available
    return limit, min(memory.available, max(0, limit - used))


def _first_number(paths: tuple[Path, ...]) -> int | None:
    for path in paths:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def _disk_free_bytes(folder: Path) -> int:
    """On the disk where ``folder`` lies, or would lie once it is made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return int(psutil.disk_usage(str(existing)).free)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _temperature_c() -> float | None:
    """The hottest sensor that reads something plausible."""
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    readings = [reading.current for group in sensors.values() for reading in group if 0 < reading.current < 150]
    return max(readings, default=None)
