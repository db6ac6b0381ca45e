"""The resident memory of this process on Linux, and an enforced limit on it.

One quantity is used throughout: **resident memory**, anonymous and file-backed pages together. The cost model predicts
its peak (VmHWM), the limit bounds it, and the result reports it. The kernel has no such limit, so two others are used:

1. ``RLIMIT_DATA`` bounds private writable mappings (VmData) and makes allocations fail. VmData excludes file-backed
   pages, so these are subtracted from the limit; it includes writable pages never touched, so these are added to it.
2. After each step the peak is compared with the limit, which catches file-backed pages that became resident later.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.errors import TrainingMemoryError

_STATUS = Path("/proc/self/status")
_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """Bytes of this process: VmHWM, RssAnon, RssFile and RssShmem together, VmData (see proc(5))."""

    peak_bytes: int
    anonymous_bytes: int
    file_bytes: int
    data_bytes: int


def memory_status() -> MemoryStatus:
    """What the kernel says now."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    peak, anonymous, file, shared, data = (
        int(fields[name].split()[0]) << 10 for name in ("VmHWM", "RssAnon", "RssFile", "RssShmem", "VmData")
    )
    return MemoryStatus(peak, anonymous, file + shared, data)


def limit_resident(limit_bytes: int) -> None:
    """Make allocations fail from now on that would raise resident memory above ``limit_bytes``.

    Call it again once libraries are loaded and buffers are filled, since the two corrections have changed by then.
    """
    now = memory_status()
    untouched = now.data_bytes - now.anonymous_bytes
    data_limit = max(_PAGE_BYTES, limit_bytes - now.file_bytes + untouched)  # the kernel takes 0 for no limit
    resource.setrlimit(resource.RLIMIT_DATA, (data_limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def lift_limit() -> None:
    """Remove the limit again, so that a process that ran out of memory can report why it failed."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def check_resident(limit_bytes: int) -> None:
    """Raise ``TrainingMemoryError`` if the peak so far exceeds ``limit_bytes``."""
    peak = memory_status().peak_bytes
    if peak > limit_bytes:
        raise out_of_memory(limit_bytes, f"peak {peak} bytes")


def out_of_memory(limit_bytes: int, detail: str) -> TrainingMemoryError:
    """The error that says which limit was too small."""
    return TrainingMemoryError(
        f"training needs more than its limit of {limit_bytes} bytes ({detail}); take a smaller submodel"
    )
