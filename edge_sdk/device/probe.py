"""What this machine can spare now, by psutil and the kernel; a value that cannot be read is ``None``, never a guess.

With a profile, its limits apply. Without one, the agent may use a quarter of the memory for training and an eighth for
inference. Either way it gets no more than what is available now, less ``RESERVE_BYTES`` for other programs.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from edge_sdk.device.battery import Battery
from edge_sdk.device.control_group import group_memory
from edge_sdk.device.processor import usable_cores
from edge_sdk.device.sensors import temperature_c
from edge_sdk.device.system import System, or_none
from edge_sdk.elastic.runtimes import MIB
from edge_sdk.errors import UnfitDeviceError
from edge_sdk.profile import DeviceProfile
from edge_sdk.protocol.messages import Snapshot

RESERVE_BYTES = 64 * MIB


def take_snapshot(profile: DeviceProfile | None, battery: Battery, folder: Path, system: System) -> Snapshot:
    """Measure what is quick to measure. ``folder`` is where the agent keeps its state."""
    total, available = memory_bytes(system)
    spare = max(0, available - RESERVE_BYTES)
    if profile is None:
        training, inference, threads = total // 4, total // 8, usable_cores(system)
    else:
        limits = profile.limits
        total = min(total, profile.memory_total_mib * MIB)
        training, inference = limits.training_memory_mib * MIB, limits.inference_memory_mib * MIB
        threads = min(limits.threads, usable_cores(system))
    return Snapshot(
        memory_total_bytes=total,
        memory_available_bytes=min(available, total),
        training_memory_bytes=min(training, spare),
        inference_memory_bytes=min(inference, spare),
        threads=threads,
        disk_free_bytes=disk_free_bytes(folder),
        battery_share=battery.share(),
        charging=battery.charging(),
        temperature_c=temperature_c(system),
    )


def memory_bytes(system: System) -> tuple[int, int]:
    """Total and available memory, of the machine or of this process's control groups, whichever is less.

    Raises ``UnfitDeviceError`` if the machine's memory cannot be read: no limit could be kept then.
    """
    memory, group = or_none(psutil.virtual_memory), group_memory(system)
    if memory is None:
        raise UnfitDeviceError("the size of memory cannot be read: an agent needs /proc/meminfo")
    if group is None:
        return memory.total, memory.available
    return min(memory.total, group.limit_bytes), min(memory.available, group.available_bytes)


def disk_free_bytes(folder: Path) -> int | None:
    """Free bytes of the disk where ``folder`` lies, or will lie once it exists; ``None`` if unknown."""
    try:
        return int(psutil.disk_usage(str(existing_part(folder))).free)
    except OSError:
        return None


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
