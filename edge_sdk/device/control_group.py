"""The memory and processor time that control groups (version 1 or 2) leave to this process.

Any group above the process may set a limit, and the kernel applies all of them, so every group on the path from the
process's own (``/proc/self/cgroup``) up to the root counts. Inside a container that path may be the host's, of which
only the mounted root exists; groups that do not exist set no limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from edge_sdk.device.system import System, whole

_V1_UNLIMITED_BYTES = 1 << 62  # version 1 writes "none" as the largest number of pages, in bytes


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """The tightest memory limit, the group that sets it, and the memory available under all limits."""

    limit_bytes: int
    available_bytes: int
    group: str


@dataclass(frozen=True, slots=True)
class _Names:
    """The names of one version's memory files, and the lines of ``memory.stat`` that count reclaimable memory."""

    limit: str
    used: str
    reclaimable: tuple[str, ...]


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_V2 = _Names("memory.max", "memory.current", ("inactive_file", "active_file"))


def group_memory(system: System) -> GroupMemory | None:
    """The memory that control groups leave; ``None`` if none limits it."""
    found = [
        GroupMemory(limit, max(0, limit - used), group)
        for names, controller in ((_V2, ""), (_V1, "memory"))
        for group in _groups(system, controller)
        if (limit := system.number(f"{group}/{names.limit}")) is not None and limit < _V1_UNLIMITED_BYTES
        if (used := _used_bytes(system, group, names)) is not None
    ]
    if not found:
        return None
    tightest = min(found, key=lambda memory: memory.limit_bytes)
    available_bytes = min(memory.available_bytes for memory in found)
    return GroupMemory(tightest.limit_bytes, available_bytes, f"/{tightest.group}")


def group_cores(system: System) -> int | None:
    """The processor time that control groups leave, in cores, rounded up; ``None`` if none limits it."""
    quotas = [_v2_quota(system, group) for group in _groups(system, "")]
    quotas += [_v1_quota(system, group) for group in _groups(system, "cpu")]
    known = [quota for quota in quotas if quota is not None]
    return max(1, math.ceil(min(known))) if known else None


def _used_bytes(system: System, group: str, names: _Names) -> int | None:
    """Memory in use less the file cache, which the kernel can reclaim, as the machine's MemAvailable assumes too."""
    used = system.number(f"{group}/{names.used}")
    lines = (line.split() for line in (system.text(f"{group}/memory.stat") or "").splitlines())
    cache = sum(whole(words[1]) or 0 for words in lines if len(words) == 2 and words[0] in names.reclaimable)
    return None if used is None else max(0, used - cache)


def _groups(system: System, controller: str) -> Iterator[str]:
    """Folders of the process's group and all above it, innermost first; ``controller`` is ``""`` for version 2."""
    mounts = [f"sys/fs/cgroup/{controller}"] if controller else ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
    path = PurePosixPath(_own_path(system, controller) or "/")
    for mount in mounts:
        for group in (path, *path.parents):
            yield f"{mount}{group}".rstrip("/")


def _own_path(system: System, controller: str) -> str | None:
    """The path of this controller in ``/proc/self/cgroup``, whose lines are ``number:controllers:path``."""
    lines = (line.split(":", 2) for line in (system.text("proc/self/cgroup") or "").splitlines())
    return next((parts[2] for parts in lines if len(parts) == 3 and controller in parts[1].split(",")), None)


def _v2_quota(system: System, group: str) -> float | None:
    words = (system.text(f"{group}/cpu.max") or "").split()
    return _cores(whole(words[0]), whole(words[1])) if len(words) == 2 else None


def _v1_quota(system: System, group: str) -> float | None:
    return _cores(system.number(f"{group}/cpu.cfs_quota_us"), system.number(f"{group}/cpu.cfs_period_us"))


def _cores(quota_us: int | None, period_us: int | None) -> float | None:
    return quota_us / period_us if quota_us is not None and quota_us > 0 and period_us else None
