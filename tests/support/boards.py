"""Little trees of /proc and /sys, as a kernel lays them out, and tools that answer as the real ones do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20

# as the kernel of JetPack 6 shows an Orin Nano: one sensor that is off, one rail monitor, a zone that never changes
JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "52343",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "54718",
    "sys/class/thermal/thermal_zone2/type": "PMIC-Die",
    "sys/class/thermal/thermal_zone2/temp": "100000",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": "5000",
    "sys/class/hwmon/hwmon1/curr1_input": "1480",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon1/in2_input": "4990",
    "sys/class/hwmon/hwmon1/curr2_input": "300",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1510400",
    "sys/devices/system/cpu/cpu4/cpufreq/scaling_cur_freq": "1497600",
    "sys/devices/system/cpu/cpu4/cpufreq/cpuinfo_max_freq": "1510400",
}

RASPBERRY_PI = {
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "61816",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1800000",
}

# a route table of three lines: a wired link, a modem with the better metric, a local network
_ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t0101A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0\n"
    "wwan0\t00000000\t00000000\t0001\t0\t0\t100\t00000000\t0\t0\t0\n"
    "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
)


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Files of a machine below ``root``; the same path again replaces what it holds."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def write_tool(root: Path, name: str, script: str) -> None:
    """A command of this machine: the lines of a shell script."""
    tool = write_tree(root, {f"usr/bin/{name}": f"#!/bin/sh\n{script}\n"}) / "usr/bin" / name
    tool.chmod(0o755)


def group_v2(root: Path, path: str, *, limit: str, used: int, cache: int = 0, mount: str = "sys/fs/cgroup") -> None:
    """A memory limit on a group of version 2; a third of its file cache is active."""
    stat = f"anon {used - cache}\nfile {cache}\ninactive_file {cache - cache // 3}\nactive_file {cache // 3}\n"
    folder = f"{mount}{path}"
    write_tree(root, {f"{folder}/memory.max": f"{limit}\n", f"{folder}/memory.current": f"{used}\n"})
    write_tree(root, {f"{folder}/memory.stat": stat})


def group_v1(root: Path, path: str, *, limit: int, used: int, cache: int = 0) -> None:
    """A memory limit on a group of version 1; a third of its file cache is active."""
    folder = f"sys/fs/cgroup/memory{path}"
    write_tree(root, {f"{folder}/memory.limit_in_bytes": f"{limit}\n", f"{folder}/memory.usage_in_bytes": f"{used}\n"})
    lists = f"total_inactive_file {cache - cache // 3}\ntotal_active_file {cache // 3}\n"
    write_tree(root, {f"{folder}/memory.stat": f"cache {cache}\n{lists}"})


def modem(root: Path, said: str) -> Path:
    """A machine whose default route is a modem's, and whose NetworkManager says ``said`` of it."""
    write_tree(root, {"proc/net/route": _ROUTES})
    write_tool(root, "nmcli", f'[ "$6" = wwan0 ] && echo "GENERAL.METERED:{said}" || echo "GENERAL.METERED:no"')
    return root
