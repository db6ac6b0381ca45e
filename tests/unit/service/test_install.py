"""A service is installed into a folder in the place of /, by systemd's own tools; only the manager is not there.

`systemctl` is a script that notes what it is told, and passes what can be done without a running systemd on to it.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_sdk.errors import ConfigurationError, ServiceManagerError
from edge_sdk.service import install as module
from edge_sdk.service.cli import app
from edge_sdk.service.install import Places, install, uninstall, unit_for
from edge_sdk.service.systemd import Systemd
from edge_sdk.service.unit import UNIT, Unit, unit_text

SETTINGS = 'device = "pi"\nbroker = "mqtt://127.0.0.1"\ndata = "/d.csv"\nprofile = "raspberry-pi-zero-2-w"\n'
installs = pytest.mark.skipif(
    shutil.which("systemctl") is None or os.geteuid() != 0, reason="needs systemctl, and root, who alone gives owners"
)


class Machine:
    """A root folder, and the manager of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        (self.root / "etc").mkdir(parents=True)
        self.places = Places(own=False, root=self.root)
        self._told = folder / "told"

    def systemd(self) -> Systemd:
        return Systemd(own=False, booted=self.root)

    def told(self) -> list[str]:
        return self._told.read_text().splitlines() if self._told.exists() else []

    def unit(self) -> Unit:
        return Unit(command=("/usr/bin/env",), config=self.places.config)

    def wanted(self) -> bool:
        return (self.root / "etc/systemd/system/multi-user.target.wants" / UNIT).is_symlink()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    real = shutil.which("systemctl")
    script = tmp_path / "bin" / "systemctl"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/told\n'
        f'case "$1" in\n'
        f'  enable) exec {real} --root={made.root} enable "$2";;\n'
        f'  disable) exec {real} --root={made.root} disable "$3";;\n'
        f'  start) echo "Job for $2 failed." >&2; exit 1;;\n'
        f'  show) printf "ActiveState=active\\nStatusText=waiting for work = none\\n";;\n'
        f"esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    return made


@installs
def test_installed_service_starts_at_boot(machine: Machine) -> None:
    machine.places.config.parent.mkdir()
    machine.places.config.write_text(SETTINGS)
    assert install(machine.unit(), machine.places, machine.systemd())
    assert machine.told() == ["daemon-reload", f"enable {UNIT}"]
    assert machine.wanted()
    assert f"ExecStart=/usr/bin/env run --config {machine.places.config}" in machine.places.unit.read_text()
    assert machine.places.config.read_text() == SETTINGS


@installs
def test_first_installation_writes_settings_that_only_the_service_may_read(machine: Machine) -> None:
    assert not install(machine.unit(), machine.places, machine.systemd())
    assert "#device =" in machine.places.config.read_text()
    (group,) = [
        line for line in (machine.root / "etc/group").read_text().splitlines() if line.startswith("raffm-edge:")
    ]
    for path, mode in ((machine.places.config, 0o640), (machine.places.config.parent, 0o750)):
        assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (int(group.split(":")[2]), mode)


@installs
def test_uninstalled_service_leaves_settings(machine: Machine) -> None:
    install(machine.unit(), machine.places, machine.systemd())
    uninstall(machine.places, machine.systemd())
    assert machine.told()[-2:] == [f"disable --now {UNIT}", "daemon-reload"]
    assert not machine.wanted()
    assert not machine.places.unit.exists()
    assert not machine.places.drop_in.exists()
    assert machine.places.config.exists()


def test_service_that_was_never_installed_cannot_be_removed(machine: Machine) -> None:
    with pytest.raises(ConfigurationError, match="no service is installed at"):
        uninstall(machine.places, machine.systemd())


def test_interpreter_that_the_service_cannot_reach_is_refused_before_anything_is_written(machine: Machine) -> None:
    closed = machine.root / "closed"
    closed.mkdir(mode=0o700)
    unit = replace(machine.unit(), command=(str(closed / "python"),))
    with pytest.raises(ConfigurationError, match=r"closed/python is closed to the service's own user at "):
        install(unit, machine.places, machine.systemd())
    assert not machine.places.unit.exists()
    assert machine.told() == []


def test_unit_has_the_limits_that_are_given(tmp_path: Path) -> None:
    given = unit_for(tmp_path / "agent.toml", own=False, memory_mib=900, cpu=50)
    assert given.command == (sys.executable, "-m", "edge_sdk.cli")
    assert (given.memory_max_mib, given.cpu_percent) == (900, 50)


def test_start_brings_what_the_settings_ask_for_since_the_installation(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk.service.cli._places", lambda _: machine.places)
    monkeypatch.setattr("edge_sdk.service.cli._systemd", lambda _: machine.systemd())
    packaged = machine.root / "lib/systemd/system" / UNIT
    packaged.parent.mkdir(parents=True)
    packaged.write_text(unit_text(machine.unit()))
    machine.places.config.parent.mkdir()
    machine.places.config.write_text(SETTINGS)
    assert CliRunner().invoke(app, ["restart"]).exit_code == 0
    assert machine.told() == ["daemon-reload", f"restart {UNIT}"]
    assert "MemoryMax=" in machine.places.drop_in.read_text()
    machine.places.config.write_text(SETTINGS.partition("profile")[0])
    CliRunner().invoke(app, ["start"])
    assert machine.told()[-1] == f"start {UNIT}"
    assert "MemoryMax=" not in machine.places.drop_in.read_text()


@installs
def test_service_is_installed_again_before_its_settings_are_filled_in(machine: Machine) -> None:
    assert not install(machine.unit(), machine.places, machine.systemd())
    assert install(machine.unit(), machine.places, machine.systemd())


def test_wrong_settings_are_refused_before_the_service_is_installed(machine: Machine) -> None:
    machine.places.config.parent.mkdir()
    machine.places.config.write_text(SETTINGS.replace("device", "devise"))
    with pytest.raises(ConfigurationError, match="devise is unknown; did you mean device"):
        install(machine.unit(), machine.places, machine.systemd())
    assert not machine.places.unit.exists()


def test_agent_with_settings_in_a_home_folder_may_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/raffm-edge/bin/python")
    assert unit_for(Path("/home/me/agent.toml"), own=False).reads_home
    assert not unit_for(Path("/etc/raffm-edge/agent.toml"), own=False).reads_home


@pytest.mark.parametrize("home", ["/home", "/root"])
def test_agent_in_a_home_folder_may_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setattr(sys, "executable", f"{home}/venv/bin/python")
    assert unit_for(tmp_path / "none.toml", own=False).reads_home


def test_machine_without_systemd_says_so(tmp_path: Path) -> None:
    with pytest.raises(ServiceManagerError, match="systemd does not run here"):
        Systemd(own=False, booted=tmp_path / "none")


def test_tool_of_systemd_that_is_missing_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd = machine.systemd()
    monkeypatch.setenv("PATH", str(machine.root))
    for ask in (lambda: systemd.control("start", UNIT), lambda: systemd.logs(lines=1, follow=False)):
        with pytest.raises(ServiceManagerError, match=r"ctl does not run \(No such file or directory\)"):
            ask()


def test_log_is_read_as_json_where_that_is_wanted(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    journal = machine.root.parent / "bin" / "journalctl"
    journal.write_text('#!/bin/sh\necho "$*"\n')
    journal.chmod(0o755)
    for as_json, words in ((False, ""), (True, " --output json")):
        assert machine.systemd().logs(lines=3, follow=False, as_json=as_json) == 0
        assert capfd.readouterr().out == f"--unit {UNIT} --lines 3{words}\n"


def test_refusal_of_the_manager_is_passed_on(machine: Machine) -> None:
    with pytest.raises(ServiceManagerError, match=rf"systemctl start {UNIT} failed: Job for {UNIT} failed\."):
        machine.systemd().control("start", UNIT)


def test_state_is_read_by_name(machine: Machine) -> None:
    assert machine.systemd().state() == {"ActiveState": "active", "StatusText": "waiting for work = none"}


def test_user_has_a_place_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/pi/.config")
    places = Places(own=True)
    assert str(places.unit) == f"/home/pi/.config/systemd/user/{UNIT}"
    assert str(places.config) == "/home/pi/.config/raffm-edge/agent.toml"


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_tool_that_fails_is_named(machine: Machine) -> None:
    (machine.root / "etc/passwd").mkdir()
    with pytest.raises(ServiceManagerError, match=r"systemd-sysusers .* failed: "):
        module._make_account(machine.root)


@pytest.mark.parametrize("scope", ["--user", "--system"])
def test_dry_run_prints_the_unit_and_changes_nothing(machine: Machine, tmp_path: Path, scope: str) -> None:
    words = ["install", scope, "--dry-run", "--config", str(tmp_path / "agent.toml"), "--memory-max-mib", "300"]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, machine.told(), (tmp_path / "agent.toml").exists()) == (0, [], False)
    assert done.output.startswith("[Unit]\n")
    assert "MemoryMax=300M\n" in done.output
    assert ("User=raffm-edge\n" in done.output) == (scope == "--system")
