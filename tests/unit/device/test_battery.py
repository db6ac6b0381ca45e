"""Batteries: the system's as psutil gives it, a profile's as it drains, and what a restart keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from edge_sdk.device.battery import DrainingBattery, SystemBattery
from edge_sdk.device.machine import Machine
from edge_sdk.device.policy import Policy
from edge_sdk.profile import BatteryFigures

FIGURES = BatteryFigures(capacity_wh=10.0, idle_watts=0.5, training_watts=4.0)
PHONE, BOARD = "android-mid-range", "raspberry-pi-5-8gb"


class Reading(NamedTuple):
    percent: float
    power_plugged: bool | None


def test_training_drains_by_its_power_and_idling_by_less() -> None:
    battery = DrainingBattery(FIGURES, 10.0)
    battery.spend(900, training=True)
    assert battery.share() == pytest.approx(0.9)
    battery.spend(7200, training=False)
    assert battery.share() == pytest.approx(0.8)


def test_empty_battery_stays_empty_and_off_the_charger() -> None:
    battery = DrainingBattery(FIGURES, 0.1)
    battery.spend(1e6, training=True)
    assert (battery.left_wh, battery.share(), battery.charging()) == (0.0, 0.0, False)


def test_battery_whose_files_are_garbled_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: int("garbled"))
    assert SystemBattery().share() is SystemBattery().charging() is None


@pytest.mark.parametrize(("percent", "share"), [(0, 0.0), (57.5, 0.575), (100.0, 1.0), (104, 1.0)])
@pytest.mark.parametrize("plugged", [True, False, None])
def test_system_battery_is_a_share_of_one(
    monkeypatch: pytest.MonkeyPatch, percent: float, share: float, plugged: bool | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: Reading(percent, plugged), raising=False)
    battery = SystemBattery()
    assert (battery.share(), battery.charging()) == (pytest.approx(share), plugged)


def test_no_battery_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert (SystemBattery().share(), SystemBattery().charging()) == (None, None)


def test_platform_without_battery_support_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert (SystemBattery().share(), SystemBattery().charging()) == (None, None)


def test_kernel_without_power_supplies_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FileNotFoundError("/sys/class/power_supply")

    monkeypatch.setattr(psutil, "sensors_battery", refuse, raising=False)
    assert (SystemBattery().share(), SystemBattery().charging()) == (None, None)


def test_machine_goes_on_from_what_an_earlier_start_left(tmp_path: Path) -> None:
    machine = Machine(PHONE, Policy(), tmp_path, kept={"battery_wh": 5.0}.get)
    machine.spend(3600, training=True)
    assert machine.numbers()["battery_wh"] == pytest.approx(2.0)


def test_first_start_finds_a_full_battery_and_more_than_full_is_full(tmp_path: Path) -> None:
    full = Machine(PHONE, Policy(), tmp_path)
    assert full.profile is not None
    assert full.profile.battery is not None
    assert full.numbers()["battery_wh"] == full.profile.battery.capacity_wh
    assert (
        Machine(PHONE, Policy(), tmp_path, kept={"battery_wh": 1e6}.get).numbers()["battery_wh"]
        == full.numbers()["battery_wh"]
    )


@pytest.mark.parametrize("profile", [None, BOARD])
def test_machine_without_a_profiled_battery_keeps_no_count(tmp_path: Path, profile: str | None) -> None:
    machine = Machine(profile, Policy(), tmp_path)
    machine.spend(3600, training=True)
    assert "battery_wh" not in machine.numbers()
