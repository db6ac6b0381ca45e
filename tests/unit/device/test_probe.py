"""The probe: limits hold on any machine, the control group counts, and what cannot be read stays unknown."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edge_sdk.device import probe
from edge_sdk.device.battery import DrainingBattery, SystemBattery
from edge_sdk.device.machine import Machine
from edge_sdk.device.policy import Policy
from edge_sdk.device.probe import RESERVE_BYTES, take_snapshot
from edge_sdk.device.processor import measure_speed
from edge_sdk.device.system import System
from edge_sdk.elastic.runtimes import MIB
from edge_sdk.errors import UnfitDeviceError
from edge_sdk.profile import BatteryFigures, DeviceProfile, load_profile, profile_names
from edge_sdk.protocol.messages import Snapshot
from tests.support.boards import JETSON, RASPBERRY_PI, group_v2, modem, write_tool, write_tree

GIB = 1024 * MIB
NONE = SystemBattery()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 GiB, 12 of them free, four cores, no battery; all else is in the tree of the test."""
    set_memory(monkeypatch, total=16 * GIB, available=12 * GIB)
    monkeypatch.setattr(probe, "usable_cores", lambda _: 4)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)


def set_memory(monkeypatch: pytest.MonkeyPatch, *, total: int, available: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total, available=available))


def look(root: Path, profile: DeviceProfile | None = None) -> Snapshot:
    return take_snapshot(profile, NONE, root, System(root))


@pytest.mark.parametrize("name", profile_names())
def test_limits_of_the_profile_hold_on_a_larger_machine(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, total=128 * GIB, available=96 * GIB)
    monkeypatch.setattr(probe, "usable_cores", lambda _: 16)
    profile = load_profile(name)
    snapshot = look(tmp_path, profile)
    assert snapshot.memory_total_bytes == profile.memory_total_mib * MIB
    assert snapshot.memory_available_bytes <= snapshot.memory_total_bytes
    assert snapshot.training_memory_bytes == profile.limits.training_memory_mib * MIB
    assert snapshot.inference_memory_bytes == profile.limits.inference_memory_mib * MIB
    assert snapshot.threads == profile.limits.threads


def test_profile_never_gives_more_than_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, total=1 * GIB, available=RESERVE_BYTES + 100 * MIB)
    monkeypatch.setattr(probe, "usable_cores", lambda _: 1)
    snapshot = look(tmp_path, load_profile("jetson-orin-nano-8gb"))
    assert (snapshot.memory_total_bytes, snapshot.threads) == (1 * GIB, 1)
    assert (snapshot.training_memory_bytes, snapshot.inference_memory_bytes) == (100 * MIB, 100 * MIB)


def test_without_a_profile_a_quarter_trains_and_an_eighth_serves(tmp_path: Path) -> None:
    snapshot = look(tmp_path)
    assert (snapshot.training_memory_bytes, snapshot.inference_memory_bytes) == (4 * GIB, 2 * GIB)
    assert (snapshot.memory_total_bytes, snapshot.memory_available_bytes) == (16 * GIB, 12 * GIB)
    assert snapshot.threads == 4


@pytest.mark.parametrize(("most", "used"), [(None, 4), (2, 2), (8, 4)])
def test_owner_bounds_the_threads_of_the_profile(tmp_path: Path, most: int | None, used: int) -> None:
    assert Machine("raspberry-pi-5-8gb", Policy(), tmp_path, threads=most).snapshot().threads == used


def test_machine_without_room_spares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, total=16 * GIB, available=RESERVE_BYTES - 1)
    snapshot = look(tmp_path)
    assert (snapshot.training_memory_bytes, snapshot.inference_memory_bytes) == (0, 0)


def test_control_group_limit_is_the_memory_there_is(tmp_path: Path) -> None:
    group_v2(tmp_path, "", limit=str(400 * MIB), used=300 * MIB)
    snapshot = look(tmp_path)
    assert (snapshot.memory_total_bytes, snapshot.memory_available_bytes) == (400 * MIB, 100 * MIB)
    assert snapshot.training_memory_bytes == 100 * MIB - RESERVE_BYTES


def test_control_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    group_v2(tmp_path, "", limit=str(400 * MIB), used=500 * MIB)
    assert look(tmp_path).memory_available_bytes == 0


def test_control_group_larger_than_the_machine_changes_nothing(tmp_path: Path) -> None:
    group_v2(tmp_path, "", limit=str(64 * GIB), used=30 * GIB)
    snapshot = look(tmp_path)
    assert (snapshot.memory_total_bytes, snapshot.memory_available_bytes) == (16 * GIB, 12 * GIB)


def test_what_cannot_be_read_stays_unknown(tmp_path: Path) -> None:
    snapshot = look(tmp_path)
    assert (snapshot.battery_share, snapshot.charging) == (None, None)
    assert (snapshot.temperature_c, snapshot.gflops) == (None, None)


def test_profiled_battery_is_reported_off_the_charger(tmp_path: Path) -> None:
    figures = BatteryFigures(capacity_wh=20, idle_watts=1, training_watts=2)
    snapshot = take_snapshot(None, DrainingBattery(figures, 5.0), tmp_path, System(tmp_path))
    assert (snapshot.battery_share, snapshot.charging) == (0.25, False)


def test_speed_is_measured_once_and_positive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([measure_speed(System(tmp_path), 0.01)])
    monkeypatch.setattr("edge_sdk.device.machine.measure_speed", lambda *_: next(speeds))
    device = Machine("raspberry-pi-5-8gb", Policy(), tmp_path)
    first, second = device.snapshot().gflops, device.snapshot().gflops
    assert first == second
    assert first is not None
    assert first > 0


def test_whole_snapshot_of_a_jetson_on_a_modem(tmp_path: Path) -> None:
    device = Machine(None, Policy(), tmp_path, system=System(modem(write_tree(tmp_path, JETSON), "yes")))
    snapshot = device.snapshot()
    assert snapshot.accelerator == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (snapshot.temperature_c, snapshot.metered, snapshot.throttled) == (pytest.approx(54.718), True, False)
    assert snapshot.providers is not None
    assert device.watts == pytest.approx(7.4)


def test_brief_snapshot_reads_what_the_policy_asks_for(tmp_path: Path) -> None:
    system = System(modem(write_tree(tmp_path, RASPBERRY_PI), "yes"))
    free, strict = Policy(), Policy(unmetered_only=True, idle_only=True)
    brief = {policy: Machine(None, policy, tmp_path, system=system).snapshot(brief=True) for policy in (free, strict)}
    assert (brief[free].metered, brief[free].others_cpu_share) == (None, None)
    assert brief[strict].metered is True
    assert brief[strict].others_cpu_share is not None
    assert brief[free].temperature_c == brief[strict].temperature_c == pytest.approx(61.816)


def test_brief_snapshot_starts_no_tool_that_the_policy_does_not_ask_for(tmp_path: Path) -> None:
    for name in ("nmcli", "busctl", "vcgencmd"):
        write_tool(tmp_path, name, f"echo {name} >> {tmp_path}/started")
    device = Machine(None, Policy(), tmp_path, system=System(tmp_path))
    assert device.snapshot(brief=True).throttled is None
    assert not (tmp_path / "started").exists()
    device.snapshot()
    assert (tmp_path / "started").read_text().split() == ["vcgencmd", "busctl"]


def test_watts_are_the_owners_before_the_profiles_before_the_sensors(tmp_path: Path) -> None:
    system = System(write_tree(tmp_path, JETSON))
    said = Policy(training_watts=3.0)
    phone = load_profile("android-mid-range").battery
    assert phone is not None
    assert Machine("android-mid-range", said, tmp_path, system=system).watts == 3.0
    assert Machine("android-mid-range", Policy(), tmp_path, system=system).watts == phone.training_watts
    assert Machine("raspberry-pi-5-8gb", Policy(), tmp_path, system=system).watts is None
    assert Machine(None, Policy(), tmp_path, system=system).watts == pytest.approx(7.4)


def test_snapshot_for_a_folder_that_is_not_made_yet_reads_its_disk(tmp_path: Path) -> None:
    snapshot = take_snapshot(None, NONE, tmp_path / "not" / "yet", System(tmp_path))
    assert snapshot.disk_free_bytes is not None
    assert snapshot.disk_free_bytes > 0


def test_snapshot_is_the_one_before_while_no_file_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application may run out of files for a moment."""

    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    device, other = (Machine(None, Policy(), tmp_path) for _ in range(2))
    before = device.snapshot(brief=True)
    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    assert device.snapshot(brief=True).memory_available_bytes == before.memory_available_bytes
    with pytest.raises(UnfitDeviceError, match="cannot be read"):
        other.snapshot(brief=True)
