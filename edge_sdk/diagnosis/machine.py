"""Checks that apply to every machine of a fleet, device or server."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterator

from edge_sdk.diagnosis.findings import Finding, Mark

_MIN_PYTHON = (3, 10)
_MADE_S = 1_793_500_000  # 1 November 2026, before this version existed: an earlier clock is wrong
_FAR_S = 20 * 365 * 86400


def python_version(_: object) -> Iterator[Finding]:
    """The interpreter's version."""
    good = sys.version_info >= _MIN_PYTHON
    advice = "" if good else "install Python 3.10 or newer"
    yield Finding("python", Mark.OK if good else Mark.FAILURE, platform.python_version(), advice)


def clock(_: object) -> Iterator[Finding]:
    """The clock, which certificates, schedules, quiet hours and daily budgets depend on."""
    now_s = time.time()
    good = _MADE_S <= now_s <= _MADE_S + _FAR_S
    found = time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(now_s))
    if good:
        yield Finding("clock", Mark.OK, found)
    else:
        advice = "turn on time synchronisation: timedatectl set-ntp true"
        yield Finding("clock", Mark.WARNING, f"{found} cannot be right", advice)


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # built by hand, or under another name, as onnxruntime-gpu is
        return "unknown version"
