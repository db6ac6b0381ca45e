"""The battery: the machine's own, or a profile's simulated one, which drains as the agent works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import psutil

from edge_sdk.device.system import or_none
from edge_sdk.profile import BatteryFigures


class Battery(Protocol):
    """A battery; implemented by :class:`SystemBattery` and :class:`DrainingBattery`."""

    def spend(self, seconds: float, *, training: bool) -> None:
        """Account for ``seconds`` that have passed, idle or training."""

    def share(self) -> float | None:
        """The charge left, 0..1; ``None`` if there is no battery or it cannot be read."""

    def charging(self) -> bool | None:
        """Whether it is on a charger; ``None`` if there is no battery or it cannot be read."""


class SystemBattery:
    """What the operating system says."""

    def spend(self, seconds: float, *, training: bool) -> None:
        """Nothing to do: the hardware counts."""

    def share(self) -> float | None:
        """See :class:`Battery`."""
        battery = _sensors()
        return None if battery is None else min(1.0, max(0.0, battery.percent / 100))

    def charging(self) -> bool | None:
        """See :class:`Battery`."""
        battery = _sensors()
        return None if battery is None else battery.power_plugged


@dataclass(slots=True)
class DrainingBattery:
    """A profile's battery away from its charger; ``left_wh`` is the only state, in watt hours."""

    figures: BatteryFigures
    left_wh: float

    def spend(self, seconds: float, *, training: bool) -> None:
        """Draw the profile's idle or training power for ``seconds``."""
        watts = self.figures.training_watts if training else self.figures.idle_watts
        self.left_wh = max(0.0, self.left_wh - watts * seconds / 3600)

    def share(self) -> float:
        """See :class:`Battery`."""
        return self.left_wh / self.figures.capacity_wh

    def charging(self) -> bool:
        """Never: it drains."""
        return False


def _sensors() -> psutil._common.sbattery | None:
    # the function is absent on platforms without battery support, the kernel's folder in some containers
    return or_none(psutil.sensors_battery) if hasattr(psutil, "sensors_battery") else None
