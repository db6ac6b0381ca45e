"""The demo's fleet: eight devices that differ by a factor of thirty in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DemoDevice:
    """A device's name in the fleet, and its profile."""

    name: str
    profile: str


FLEET = (
    DemoDevice("jetson", "jetson-orin-nano-8gb"),
    DemoDevice("pi-5", "raspberry-pi-5-8gb"),
    DemoDevice("gateway", "industrial-gateway"),
    DemoDevice("phone", "android-mid-range"),
    DemoDevice("pi-4-a", "raspberry-pi-4-4gb"),
    DemoDevice("pi-4-b", "raspberry-pi-4-4gb"),
    DemoDevice("pi-4-small", "raspberry-pi-4-2gb"),
    DemoDevice("pi-zero", "raspberry-pi-zero-2-w"),
)
NAME = "demo"


def agent_arguments(device: DemoDevice, broker: str, state_dir: Path) -> Sequence[str]:
    """What to type after ``edge-agent`` to start this device by hand."""
    return (
        "run",
        "--device",
        device.name,
        "--fleet",
        NAME,
        "--broker",
        broker,
        "--profile",
        device.profile,
        "--threads",
        str(max(1, (os.cpu_count() or 1) // len(FLEET))),  # they share this machine's cores
        "--data",
        str(data_file(device, state_dir)),
        "--state-dir",
        str(state_dir / "devices" / device.name),
        "--root",
        str(state_dir / "coordinator" / "root.json"),
    )


def data_file(device: DemoDevice, state_dir: Path) -> Path:
    """The device's own examples."""
    return state_dir / "data" / f"{device.name}.csv"
