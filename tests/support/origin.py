"""Where a figure comes from."""

from __future__ import annotations

import platform
import subprocess

import psutil


def commit() -> str:
    """Of the working tree, or ``unknown``."""
    said = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def machine() -> str:
    """In words."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.machine()}, Python {platform.python_version()}"
