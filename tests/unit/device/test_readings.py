"""What is read of small but real trees of /proc and /sys: control groups, a Jetson, a Raspberry Pi, a metered link."""

from __future__ import annotations

import errno
import json
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from edge_sdk.cli import app
from edge_sdk.device import accelerator
from edge_sdk.device.accelerator import accelerator_name, onnxruntime_providers
from edge_sdk.device.control_group import GroupMemory, group_cores, group_memory
from edge_sdk.device.link import LinkCost, LinkSpeed, default_interface, is_metered
from edge_sdk.device.probe import memory_bytes
from edge_sdk.device.processor import OthersLoad, clock_share, cpu_model, is_throttled, measure_speed, usable_cores
from edge_sdk.device.sensors import draw_watts, temperature_c
from edge_sdk.device.system import System
from edge_sdk.errors import UnfitDeviceError
from tests.support.boards import JETSON, MIB, RASPBERRY_PI, group_v1, group_v2, modem, write_tool, write_tree

NESTED_V2 = "0::/user.slice/agent.service\n"
NESTED_V1 = "9:name=systemd:/\n5:cpu,cpuacct:/box\n4:memory:/box/inner\n0::/\n"


def machine(root: Path, files: dict[str, str] | None = None) -> System:
    return System(write_tree(root, files or {}))


def test_bare_tree_tells_nothing(tmp_path: Path) -> None:
    bare = machine(tmp_path)
    assert group_memory(bare) is group_cores(bare) is None
    assert temperature_c(bare) is draw_watts(bare) is clock_share(bare) is None
    assert is_metered(bare) is accelerator_name(bare) is None
    assert is_throttled(bare, clock_share_under_load=None) is None


def test_garbled_files_tell_nothing(tmp_path: Path) -> None:
    routes = ("wlan0 00000000 x zz 0 0 0 00000000 0 0 0", "wwan0 00000000 x 0003 0 0 \u00b2 00000000 0 0 0")
    files = dict.fromkeys(
        (
            "sys/class/thermal/thermal_zone0/temp",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
            "sys/devices/system/cpu/cpu0/cpufreq/base_frequency",
        ),
        "9" * 400,
    )
    garbled = machine(tmp_path, files | {"proc/net/route": "\n".join(("Iface", *routes))})
    assert temperature_c(garbled) is clock_share(garbled) is None
    assert default_interface(garbled) is is_metered(garbled) is None


def test_what_goes_while_it_is_looked_for_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Path, __: str) -> list[Path]:
        raise FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(Path, "glob", gone)
    assert temperature_c(System(tmp_path)) is None


@pytest.mark.parametrize(
    "files", [{}, {"meminfo": "junk", "stat": "junk"}, {"meminfo": "MemTotal: 9 kB", "stat": "cpu 1"}]
)
def test_what_psutil_cannot_read_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    """On Android an ordinary user may not read /proc/stat."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(write_tree(tmp_path, files)))
    load = OthersLoad()
    load._looked_s -= 1
    assert load.share() is None
    with pytest.raises(UnfitDeviceError, match="the size of memory cannot be read"):
        memory_bytes(System(tmp_path))


# -- control groups


def test_limit_of_the_own_nested_group_counts_in_version_2(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/self/cgroup": NESTED_V2})
    group_v2(tmp_path, "/user.slice", limit="max", used=900 * MIB)
    group_v2(tmp_path, "/user.slice/agent.service", limit=str(400 * MIB), used=300 * MIB, cache=50 * MIB)
    assert group_memory(root) == GroupMemory(400 * MIB, 150 * MIB, "/sys/fs/cgroup/user.slice/agent.service")


def test_tightest_of_nested_limits_holds_and_the_fullest_group_too(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/self/cgroup": NESTED_V2})
    group_v2(tmp_path, "/user.slice", limit=str(500 * MIB), used=490 * MIB)
    group_v2(tmp_path, "/user.slice/agent.service", limit=str(400 * MIB), used=100 * MIB)
    assert group_memory(root) == GroupMemory(400 * MIB, 10 * MIB, "/sys/fs/cgroup/user.slice/agent.service")


def test_limit_of_the_own_nested_group_counts_in_version_1(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/self/cgroup": NESTED_V1})
    group_v1(tmp_path, "", limit=9223372036854771712, used=5000 * MIB)
    group_v1(tmp_path, "/box", limit=300 * MIB, used=250 * MIB, cache=100 * MIB)
    group_v1(tmp_path, "/box/inner", limit=9223372036854771712, used=250 * MIB)
    assert group_memory(root) == GroupMemory(300 * MIB, 150 * MIB, "/sys/fs/cgroup/memory/box")


def test_container_that_sees_only_its_own_root_is_limited(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/self/cgroup": "0::/docker/4f1e8a\n"})
    group_v2(tmp_path, "", limit=str(256 * MIB), used=64 * MIB)
    found = group_memory(root)
    assert found is not None
    assert (found.limit_bytes, found.available_bytes) == (256 * MIB, 192 * MIB)


def test_group_of_version_2_beside_version_1_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/self/cgroup": "4:pids:/\n0::/box\n"})
    group_v2(tmp_path, "/box", limit=str(128 * MIB), used=0, mount="sys/fs/cgroup/unified")
    found = group_memory(root)
    assert found is not None
    assert found.limit_bytes == 128 * MIB


@pytest.mark.parametrize("limit", ["max", "", "junk"])
def test_group_without_a_limit_leaves_the_machine(tmp_path: Path, limit: str) -> None:
    group_v2(tmp_path, "", limit=limit, used=64 * MIB)
    assert group_memory(machine(tmp_path)) is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_processor_time_of_a_group_limits_the_threads(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    root = machine(tmp_path, files)
    assert group_cores(root) == cores
    assert usable_cores(root) == min(usable_cores(System(tmp_path / "none")), cores or 10_000)


# -- boards


def test_jetson_is_known_by_its_device_tree_rail_and_zones(tmp_path: Path) -> None:
    jetson = machine(tmp_path, JETSON)
    assert accelerator_name(jetson) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert temperature_c(jetson) == pytest.approx(54.718)
    assert draw_watts(jetson) == pytest.approx(7.4)
    assert clock_share(jetson) == pytest.approx(0.9915, abs=1e-4)


def test_jetson_stats_names_the_module_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package with the part of its interface that is used; the service itself needs a Jetson."""
    jetson = machine(tmp_path / "root", JETSON)
    module = "class jtop:\n board = {'hardware': {'Module': 'Orin Nano (Developer kit)'}}\n"
    write_tree(tmp_path, {"packages/jtop.py": f"{module} __enter__ = lambda s: s\n __exit__ = lambda s, *e: None\n"})
    write_tool(tmp_path / "root", "python", f'exec {sys.executable} "$@"')
    monkeypatch.setattr(accelerator.sys, "executable", "python")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    assert accelerator_name(jetson) == "Orin Nano (Developer kit)"


def test_jetson_stats_of_the_systems_python_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent lives in a virtual environment, jetson-stats does not."""
    monkeypatch.setattr(accelerator.sys, "executable", "python")
    write_tool(tmp_path, "python", "echo no module named jtop >&2; exit 1")
    write_tool(tmp_path, "python3", 'case "$2" in *jtop*) echo "Orin NX (16GB ram)";; esac')
    assert accelerator_name(machine(tmp_path, JETSON)) == "Orin NX (16GB ram)"


@pytest.mark.parametrize(
    ("flags", "throttled"),
    [("0", False), ("50000", False), ("50005", True), ("4", True), ("0x1", True), ("8", True)],
)
def test_raspberry_pi_is_throttled_by_its_flags_of_now_whatever_its_clock(
    tmp_path: Path, flags: str, throttled: bool
) -> None:
    board = machine(tmp_path, RASPBERRY_PI | {"sys/devices/platform/soc/soc:firmware/get_throttled": flags})
    assert is_throttled(board, clock_share_under_load=0.3) is throttled
    assert cpu_model(board) == "Raspberry Pi 4 Model B Rev 1.4"
    assert temperature_c(board) == pytest.approx(61.816)


def test_firmware_tool_tells_where_sysfs_does_not(tmp_path: Path) -> None:
    write_tool(tmp_path, "vcgencmd", "echo throttled=0x50005")
    assert is_throttled(System(tmp_path), clock_share_under_load=1.0) is True


@pytest.mark.parametrize(("share", "throttled"), [(0.69, True), (0.7, False), (1.0, False), (None, None)])
def test_without_firmware_the_clock_under_load_tells(
    tmp_path: Path, share: float | None, throttled: bool | None
) -> None:
    assert is_throttled(System(tmp_path), share) is throttled


def test_clock_is_held_against_the_base_frequency_not_against_a_short_boost(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu0/cpufreq"
    clocks = {"scaling_cur_freq": "2900000", "cpuinfo_max_freq": "4800000"}
    laptop = machine(tmp_path, {f"{folder}/{name}": text for name, text in clocks.items()})
    assert is_throttled(laptop, clock_share(laptop)) is True
    assert clock_share(machine(tmp_path, {f"{folder}/base_frequency": "2800000"})) == pytest.approx(2.9 / 2.8)


def test_hottest_plausible_sensor_counts(tmp_path: Path) -> None:
    sensors = ("48500", "61000", "0", "-273200", "255000", "junk")
    files = {f"sys/class/hwmon/hwmon0/temp{i}_input": text for i, text in enumerate(sensors)}
    assert temperature_c(machine(tmp_path, files)) == 61.0


def test_battery_that_is_emptied_tells_the_draw(tmp_path: Path) -> None:
    folder = "sys/class/power_supply/BAT0"
    files = {f"{folder}/type": "Battery", f"{folder}/status": "Discharging", f"{folder}/power_now": "8120000"}
    assert draw_watts(machine(tmp_path, files)) == pytest.approx(8.12)
    charge = {f"{folder}/current_now": "-1500000", f"{folder}/voltage_now": "3800000"}
    assert draw_watts(machine(tmp_path, files | charge)) == pytest.approx(8.12)
    (tmp_path / folder / "power_now").unlink()
    assert draw_watts(machine(tmp_path)) == pytest.approx(5.7)
    assert draw_watts(machine(tmp_path, {f"{folder}/status": "Charging"})) is None


def test_nvidia_gpu_is_named_by_its_driver_or_its_tool(tmp_path: Path) -> None:
    write_tool(tmp_path, "nvidia-smi", "echo NVIDIA A2")
    assert accelerator_name(System(tmp_path)) == "NVIDIA A2"
    card = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ:   143\n"}
    assert accelerator_name(machine(tmp_path, card)) == "NVIDIA GeForce RTX 3060"


def test_tool_that_fails_or_hangs_tells_nothing(tmp_path: Path) -> None:
    write_tool(tmp_path, "nvidia-smi", "echo no driver; exit 9")
    write_tool(tmp_path, "slow", "exec sleep 20")
    assert accelerator_name(System(tmp_path)) is None
    assert System(tmp_path).output("slow", timeout_s=0.1) is None


# -- the link


@pytest.mark.parametrize(
    ("said", "metered"),
    [("yes", True), ("yes (guessed)", True), ("no", False), ("no (guessed)", False), ("unknown", None), ("", None)],
)
def test_metered_is_what_network_manager_says_of_the_default_route(
    tmp_path: Path, said: str, metered: bool | None
) -> None:
    system = System(modem(tmp_path, said))
    assert default_interface(system) == "wwan0"
    assert is_metered(system) is metered


@pytest.mark.parametrize(
    ("said", "metered"), [("u 1", True), ("u 2", False), ("u 3", True), ("u 4", False), ("u 0", None)]
)
def test_metered_is_asked_over_dbus_where_the_tool_is_missing(tmp_path: Path, said: str, metered: bool | None) -> None:
    write_tool(tmp_path, "busctl", f"echo {said}")
    assert is_metered(System(tmp_path)) is metered


class Asking:
    """A link's cost, asked of a stand-in for nmcli that notes each question; the clock is the test's."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s = root, 0.0
        self.says("no")
        self.cost = LinkCost(System(root), now_s=lambda: self.now_s)

    def says(self, word: str, after_s: float = 0.0) -> None:
        modem(self.root, word)
        asked, line = self.root / "asked", f"GENERAL.METERED:{word}"
        write_tool(self.root, "nmcli", f"echo >> {asked}; /bin/sleep {after_s}; echo {line}")

    def asked(self) -> int:
        return len((self.root / "asked").read_text().splitlines())

    def metered(self, now_s: float, *, working: bool) -> bool | None:
        self.now_s = now_s
        return self.cost.metered(working=working)


def test_what_the_link_costs_is_asked_every_ten_seconds_and_at_each_look_while_working(tmp_path: Path) -> None:
    link = Asking(tmp_path)
    assert [link.metered(second, working=False) for second in range(11)] == [False] * 11
    assert link.asked() == 2
    link.says("yes")
    assert link.metered(11, working=False) is False
    assert link.metered(11.6, working=True) is True


def test_look_waits_little_for_what_the_link_costs_and_an_open_question_is_no_answer(tmp_path: Path) -> None:
    link = Asking(tmp_path)
    link.metered(0, working=True)
    link.says("no", after_s=0.8)
    began_s = time.monotonic()
    assert link.metered(1, working=True) is False, "the answer before holds for half a second"
    assert link.metered(1.6, working=True) is None
    assert time.monotonic() - began_s < 0.75, "two looks of 0.2 s"
    time.sleep(0.4)
    assert link.metered(2.2, working=True) is False


def test_link_speed_counts_only_the_time_of_waiting() -> None:
    speed = LinkSpeed()
    speed.begin(100.0)
    speed.arrived(MIB // 2, 100.5)
    assert speed.bytes_per_s is None
    speed.arrived(MIB // 2, 101.0)
    assert speed.bytes_per_s == pytest.approx(MIB)
    speed.begin(1000.0)
    speed.arrived(MIB, 1001.0)
    assert speed.bytes_per_s == pytest.approx(MIB)


def test_link_speed_follows_a_link_that_becomes_slow() -> None:
    speed = LinkSpeed()
    speed.begin(0.0)
    for second in range(1, 61):
        speed.arrived(10 * MIB, second)
    for second in range(61, 361):
        speed.arrived(MIB, second)
    assert speed.bytes_per_s == pytest.approx(MIB, rel=0.6)


# -- this machine, as it is


def test_providers_are_those_of_the_onnxruntime_that_is_installed() -> None:
    import onnxruntime

    assert onnxruntime_providers() == tuple(onnxruntime.get_available_providers())


def test_speed_is_measured_and_positive(tmp_path: Path) -> None:
    began_s = time.monotonic()
    speed = measure_speed(machine(tmp_path, JETSON), 0.3)
    assert time.monotonic() - began_s >= 0.3
    assert speed.gflops > 0
    assert speed.clock_share == pytest.approx(0.9915, abs=1e-4)


def test_own_work_is_not_the_use_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([(0.0, 100.0, 10.0), (10.0, 130.0, 35.0)])
    clock: list[float] = []

    def read() -> float:
        if not clock:
            clock.extend(next(times))
        return clock.pop(0)

    monkeypatch.setattr("edge_sdk.device.processor.time.monotonic", read)
    monkeypatch.setattr("edge_sdk.device.processor._busy_s", read)
    monkeypatch.setattr("edge_sdk.device.processor._own_s", read)
    monkeypatch.setattr("edge_sdk.device.processor.psutil.cpu_count", lambda: 4)
    assert OthersLoad().share() == pytest.approx((30 - 25) / (10 * 4))


def test_load_of_this_machine_is_a_share() -> None:
    import time

    load = OthersLoad()
    assert load.share() is None
    time.sleep(0.11)
    share = load.share()
    assert share is not None
    assert 0 <= share <= 1


def test_what_a_program_prints_in_unicode_is_read_as_such(tmp_path: Path) -> None:
    """So is the path of a folder with an umlaut, where a Python of its own lies."""
    write_tool(tmp_path, "says", "locale charmap")
    assert System(tmp_path).output("says") == "UTF-8"


def test_providers_are_told_also_where_no_accelerator_is_found() -> None:
    """An agent asks for them only where there is one; whoever looks at a device wants to know."""
    told = CliRunner().invoke(app, ["profile", "--profile", "raspberry-pi-5-8gb", "--json"])
    assert "CPUExecutionProvider" in json.loads(told.stdout)["providers"]
