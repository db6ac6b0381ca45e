"""The probe: limits hold on any machine, the control group counts, and what cannot be read stays unknown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edge_sdk.device import probe
from edge_sdk.device.battery import DrainingBattery, SystemBattery
from edge_sdk.device.machine import Machine
from edge_sdk.device.policy import Policy
from edge_sdk.device.probe import RESERVE_BYTES, measure_gflops, take_snapshot
from edge_sdk.device.profile import MIB, BatteryFigures, load_profile, profile_names

GIB = 1024 * MIB
NONE = SystemBattery()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 GiB, 12 of them free, four cores, no battery, no sensors, no control group."""
    set_memory(monkeypatch, total=16 * GIB, available=12 * GIB)
    monkeypatch.setattr(probe, "_cores", lambda: 4)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    monkeypatch.setattr(probe, "_CGROUP_LIMITS", ())
    monkeypatch.setattr(probe, "_CGROUP_USED", ())


def set_memory(monkeypatch: pytest.MonkeyPatch, *, total: int, available: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total, available=available))


def set_control_group(monkeypatch: pytest.MonkeyPatch, folder: Path, *, limit: str, used: str) -> None:
    (folder / "memory.max").write_text(limit + "\n", encoding="ascii")
    (folder / "memory.current").write_text(used + "\n", encoding="ascii")
    monkeypatch.setattr(probe, "_CGROUP_LIMITS", (folder / "absent", folder / "memory.max"))
    monkeypatch.setattr(probe, "_CGROUP_USED", (folder / "absent", folder / "memory.current"))


@pytest.mark.parametrize("name", profile_names())
def test_limits_of_the_profile_hold_on_a_larger_machine(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, total=128 * GIB, available=96 * GIB)
    monkeypatch.setattr(probe, "_cores", lambda: 16)
    profile = load_profile(name)
    snapshot = take_snapshot(profile, NONE, tmp_path)
    assert snapshot.memory_total_bytes == profile.memory_total_mib * MIB
    assert snapshot.memory_available_bytes <= snapshot.memory_total_bytes
    assert snapshot.training_memory_bytes == profile.limits.training_memory_mib * MIB
    assert snapshot.inference_memory_bytes == profile.limits.inference_memory_mib * MIB
    assert snapshot.threads == profile.limits.threads


def test_profile_never_gives_more_than_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, total=1 * GIB, available=RESERVE_BYTES + 100 * MIB)
    monkeypatch.setattr(probe, "_cores", lambda: 1)
    snapshot = take_snapshot(load_profile("jetson-orin-nano-8gb"), NONE, tmp_path)
    assert (snapshot.memory_total_bytes, snapshot.threads) == (1 * GIB, 1)
    assert (snapshot.training_memory_bytes, snapshot.inference_memory_bytes) == (100 * MIB, 100 * MIB)


def test_without_a_profile_a_quarter_trains_and_an_eighth_serves(tmp_path: Path) -> None:
    snapshot = take_snapshot(None, NONE, tmp_path)
    assert (snapshot.training_memory_bytes, snapshot.inference_memory_bytes) == (4 * GIB, 2 * GIB)
    assert (snapshot.memory_total_bytes, snapshot.memory_available_bytes) == (16 * GIB, 12 * GIB)
    assert snapshot.threads == 4


def test_machine_without_room_spares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, total=16 * GIB, available=RESERVE_BYTES - 1)
    snapshot = take_snapshot(None, NONE, tmp_path)
    assert (snapshot.training_memory_bytes, snapshot.inference_memory_bytes) == (0, 0)


def test_control_group_limit_is_the_memory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_control_group(monkeypatch, tmp_path, limit=str(400 * MIB), used=str(300 * MIB))
    snapshot = take_snapshot(None, NONE, tmp_path)
    assert (snapshot.memory_total_bytes, snapshot.memory_available_bytes) == (400 * MIB, 100 * MIB)
    assert snapshot.training_memory_bytes == 100 * MIB - RESERVE_BYTES


def test_control_group_over_its_limit_has_nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_control_group(monkeypatch, tmp_path, limit=str(400 * MIB), used=str(500 * MIB))
    assert take_snapshot(None, NONE, tmp_path).memory_available_bytes == 0


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", ""])
def test_control_group_without_a_limit_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    set_control_group(monkeypatch, tmp_path, limit=limit, used=str(300 * MIB))
    snapshot = take_snapshot(None, NONE, tmp_path)
    assert (snapshot.memory_total_bytes, snapshot.memory_available_bytes) == (16 * GIB, 12 * GIB)


def test_what_cannot_be_read_stays_unknown(tmp_path: Path) -> None:
    snapshot = take_snapshot(None, NONE, tmp_path)
    assert (snapshot.battery_share, snapshot.charging) == (None, None)
    assert (snapshot.temperature_c, snapshot.gflops) == (None, None)


def test_platform_without_sensors_has_no_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert take_snapshot(None, NONE, tmp_path).temperature_c is None


def test_hottest_plausible_sensor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = {"cpu": [SimpleNamespace(current=48.5), SimpleNamespace(current=61.0)]}
    broken = {"acpi": [SimpleNamespace(current=0.0), SimpleNamespace(current=-273.2), SimpleNamespace(current=255.0)]}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: readings | broken)
    assert take_snapshot(None, NONE, tmp_path).temperature_c == 61.0


def test_profiled_battery_is_reported_off_the_charger(tmp_path: Path) -> None:
    figures = BatteryFigures(capacity_wh=20, idle_watts=1, training_watts=2)
    snapshot = take_snapshot(None, DrainingBattery(figures, 5.0), tmp_path)
    assert (snapshot.battery_share, snapshot.charging) == (0.25, False)


def test_speed_is_measured_once_and_positive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([measure_gflops()])
    monkeypatch.setattr("edge_sdk.device.machine.measure_gflops", lambda: next(speeds))
    device = Machine("raspberry-pi-5-8gb", Policy(), tmp_path)
    first, second = device.snapshot().gflops, device.snapshot().gflops
    assert first == second
    assert first is not None
    assert first > 0


def test_snapshot_for_a_folder_that_is_not_made_yet_reads_its_disk(tmp_path: Path) -> None:
    snapshot = take_snapshot(None, SystemBattery(), tmp_path / "not" / "yet")
    assert snapshot.disk_free_bytes is not None
    assert snapshot.disk_free_bytes > 0
