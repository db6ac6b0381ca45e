"""Temperature and power by the kernel's sensors."""

from __future__ import annotations

from edge_sdk.device.system import System

_PLAUSIBLE_C = (0.0, 150.0)
_CONSTANT_ZONES = frozenset({"PMIC-Die"})  # a Jetson's always reads 100 °C


def temperature_c(system: System) -> float | None:
    """The highest plausible reading of any sensor, in degrees Celsius; ``None`` if there is none."""
    zones = (
        f"{zone}/temp"
        for zone in system.matching("sys/class/thermal/thermal_zone*")
        if system.text(f"{zone}/type") not in _CONSTANT_ZONES
    )
    readings = (system.number(path) for path in (*zones, *system.matching("sys/class/hwmon/hwmon*/temp*_input")))
    celsius = (reading / 1000 for reading in readings if reading is not None)
    return max((reading for reading in celsius if _PLAUSIBLE_C[0] < reading < _PLAUSIBLE_C[1]), default=None)


def draw_watts(system: System) -> float | None:
    """The power that the whole machine draws now, by a Jetson's input rail, else by a discharging battery."""
    return _input_rail_watts(system) or _battery_watts(system)


def _input_rail_watts(system: System) -> float | None:
    """By a Jetson's INA3221 power monitors, whose rail VDD_IN (POM_5V_IN on a Nano) feeds the whole board."""
    for label in system.matching("sys/class/hwmon/hwmon*/in[1-3]_label"):
        if system.text(label) in {"VDD_IN", "POM_5V_IN"}:
            volts_file = label.replace("_label", "_input")
            millivolts = system.number(volts_file)
            milliamperes = system.number(volts_file.replace("/in", "/curr"))
            if millivolts is not None and milliamperes is not None:
                return millivolts * milliamperes / 1e6
    return None


def _battery_watts(system: System) -> float | None:
    for battery in system.matching("sys/class/power_supply/*"):
        if system.text(f"{battery}/type") == "Battery" and system.text(f"{battery}/status") == "Discharging":
            microwatts, microamperes, microvolts = (
                system.number(f"{battery}/{name}_now") for name in ("power", "current", "voltage")
            )
            if microwatts is not None:
                return abs(microwatts) / 1e6
            if microamperes is not None and microvolts is not None:  # of a gauge that counts charge
                return abs(microamperes) * microvolts / 1e12
    return None
