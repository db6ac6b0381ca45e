"""The unit: what systemd's own tools say of it, and what it says about memory, users and paths."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.errors import ConfigurationError
from edge_sdk.profile import load_profile
from edge_sdk.service.limits import AGENT_MIB, cpu_percent, memory_max_mib
from edge_sdk.service.unit import UNIT, Unit, config_of, sysusers_text, tmpfiles_text, unit_text

MACHINE = Unit(command=(sys.executable, "-m", "edge_sdk.cli"), config=Path("/etc/raffm-edge/agent.toml"))
OWN = Unit(command=MACHINE.command, config=Path("/home/pi/agent.toml"), own=True)
EXPOSURE = 2.0  # the most that systemd calls "OK"; a unit without confinement has 9.6, "UNSAFE"
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def directives(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def analyze(folder: Path, unit: Unit, *words: str) -> subprocess.CompletedProcess[str]:
    path = folder / UNIT
    path.write_text(unit_text(unit))
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(
        ["systemd-analyze", *words, path], capture_output=True, text=True, check=False, env=environment
    )


@needs_analyze
@pytest.mark.parametrize("unit", [MACHINE, OWN], ids=["machine", "own"])
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, unit: Unit) -> None:
    done = analyze(tmp_path, unit, "verify", "--man=no", *(["--user"] if unit.own else []))
    assert UNIT not in done.stderr
    assert done.returncode == 0, done.stderr


@needs_analyze
def test_systemd_finds_what_is_wrong_with_a_unit(tmp_path: Path) -> None:
    done = analyze(tmp_path, Unit(command=("/nowhere/edge-agent",), config=MACHINE.config), "verify", "--man=no")
    assert "/nowhere/edge-agent is not executable" in done.stderr


@needs_analyze
def test_exposure_by_systemds_own_measure_is_low(tmp_path: Path) -> None:
    done = analyze(tmp_path, MACHINE, "security", "--offline=true", f"--threshold={int(EXPOSURE * 10)}")
    assert done.returncode == 0, done.stdout
    assert 0 < float(re.findall(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)[0]) <= EXPOSURE


@pytest.mark.parametrize("unit", [MACHINE, OWN], ids=["machine", "own"])
def test_agent_with_thousands_of_pictures_is_not_ended_while_it_reads_them(unit: Unit) -> None:
    found = directives(unit_text(unit))
    assert found["TimeoutStartSec"] == "infinity"
    assert int(found["WatchdogSec"]) >= 1800


def test_machines_unit_has_a_user_and_a_state_folder_of_its_own() -> None:
    found = directives(unit_text(MACHINE))
    assert (found["User"], found["StateDirectory"], found["ProtectHome"]) == ("raffm-edge", "raffm-edge", "yes")
    assert found["Environment"] == "RAFFM_EDGE_STATE_DIR=%S/raffm-edge"
    assert found["WantedBy"] == "multi-user.target"


def test_own_unit_leaves_out_what_a_users_manager_cannot_do() -> None:
    found = directives(unit_text(OWN))
    assert not {"User", "StateDirectory", "ProtectSystem", "CapabilityBoundingSet", "After"} & set(found)
    assert (found["NoNewPrivileges"], found["WantedBy"]) == ("yes", "default.target")


def test_home_is_readable_only_where_the_agent_lies_there() -> None:
    homely = Unit(command=MACHINE.command, config=MACHINE.config, reads_home=True)
    assert directives(unit_text(homely))["ProtectHome"] == "read-only"


def test_work_of_the_device_itself_comes_first_and_memory_is_bounded_without_a_profile_too() -> None:
    """systemd shares the processor out between services by their weights, 100 each; Nice= counts within one."""
    for unit in (MACHINE, OWN):
        found = directives(unit_text(unit))
        assert (found["CPUWeight"], found["IOWeight"], found["MemoryHigh"]) == ("10", "10", "75%")


def test_limits_are_there_only_where_given() -> None:
    assert not {"MemoryMax", "CPUQuota"} & set(directives(unit_text(MACHINE)))
    limited = Unit(command=MACHINE.command, config=MACHINE.config, memory_max_mib=700, cpu_percent=150)
    found = directives(unit_text(limited))
    assert (found["MemoryMax"], found["CPUQuota"]) == ("700M", "150%")
    assert "MemoryHigh" not in found


def test_limits_of_a_profile_hold_the_agent_training_and_inference_at_once() -> None:
    profile = load_profile("raspberry-pi-zero-2-w")
    limits = profile.limits
    assert memory_max_mib(profile) == AGENT_MIB + limits.training_memory_mib + 2 * limits.inference_memory_mib
    assert cpu_percent(profile) == 100 * limits.threads


def test_systemd_expands_nothing_in_a_path() -> None:
    odd = Unit(command=("/opt/my agent/100%", "$HOME"), config=Path('/etc/a "b"/c.toml'))
    assert directives(unit_text(odd))["ExecStart"] == (
        '"/opt/my agent/100%%" $$HOME run --config "/etc/a \\"b\\"/c.toml"'
    )


@pytest.mark.parametrize("path", ["/etc/raffm-edge/agent.toml", '/etc/a "b"/c%d$.toml', "/back\\slash/it's;.toml"])
def test_settings_that_a_unit_names_are_found_in_it(path: str) -> None:
    assert config_of(unit_text(Unit(command=MACHINE.command, config=Path(path)))) == Path(path)


def test_unit_that_names_no_settings_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="has 'ExecStart=/bin/agent' without --config"):
        config_of("[Service]\nExecStart=/bin/agent\n")


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_systemd_makes_the_user_that_the_unit_names(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "raffm-edge.conf"
    file.write_text(sysusers_text())
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", file], check=True)
    (line,) = [line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("raffm-edge:")]
    assert line.endswith(":/var/lib/raffm-edge:/usr/sbin/nologin")


def test_settings_are_closed_to_other_users() -> None:
    modes = {path: mode for _, path, mode, _, _ in map(str.split, tmpfiles_text().splitlines())}
    assert modes == {"/etc/raffm-edge": "0750", "/etc/raffm-edge/agent.toml": "0640", "/var/lib/raffm-edge": "0700"}
