"""Puts the unit where systemd looks for it, with its user and its file of settings, and takes it away again."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from platformdirs import user_config_path

from edge_sdk.device.profile import load_profile
from edge_sdk.disk import disk_errors
from edge_sdk.errors import ConfigurationError, ServiceManagerError
from edge_sdk.service.limits import cpu_percent, memory_max_mib
from edge_sdk.service.systemd import Systemd
from edge_sdk.service.unit import NAME, UNIT, Unit, sysusers_text, tmpfiles_text, unit_text
from edge_sdk.settings import example_file, load_settings

_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of a service lie; ``root`` is the machine's, or a folder in its place."""

    own: bool
    root: Path = Path("/")

    @property
    def unit(self) -> Path:
        """The unit."""
        return (user_config_path("systemd") / "user" if self.own else self.root / "etc/systemd/system") / UNIT

    @property
    def config(self) -> Path:
        """The settings that the service runs with, unless others are named."""
        return (user_config_path(NAME) if self.own else self.root / "etc" / NAME) / "agent.toml"


def unit_for(config: Path, *, own: bool, memory_mib: int | None = None, cpu: int | None = None) -> Unit:
    """The unit that runs this interpreter's agent; limits that are not given follow from the settings' profile.

    Without settings or a profile in them there are none. Raises ``ConfigurationError`` where the settings are wrong.
    """
    command = (sys.executable, "-m", "edge_sdk.cli")
    reads_home = any(home in _folders(Path(sys.executable)) for home in _HOMES)
    unit = Unit(command=command, config=config.absolute(), own=own, reads_home=reads_home)
    name = load_settings(config, {}, {}).config.profile if config.exists() else None
    if name is not None:
        profile = load_profile(name)
        unit = replace(unit, memory_max_mib=memory_max_mib(profile), cpu_percent=cpu_percent(profile))
    return replace(unit, memory_max_mib=memory_mib or unit.memory_max_mib, cpu_percent=cpu or unit.cpu_percent)


def install(unit: Unit, places: Places, systemd: Systemd) -> bool:
    """Write and enable ``unit``; whether its settings were there, otherwise an example was written in their place.

    Raises ``ConfigurationError`` for the machine's unit without being root, or where its user cannot reach the
    interpreter; ``StorageError``; ``ServiceManagerError``.
    """
    if not unit.own:
        _check_reach(Path(unit.command[0]))
    configured = unit.config.exists()
    if not configured:
        _write(unit.config, example_file())
    if not unit.own:
        _make_account(places.root)
    _write(places.unit, unit_text(unit))
    systemd.control("daemon-reload")
    systemd.control("enable", UNIT)
    return configured


def uninstall(places: Places, systemd: Systemd) -> None:
    """Stop and take away the unit; settings and state stay. ``ConfigurationError`` where there is none."""
    if not places.unit.exists():
        raise ConfigurationError(
            f"no service is installed at {places.unit}; one of the package goes by apt remove {NAME}"
        )
    systemd.control("disable", "--now", UNIT)
    with disk_errors(places.unit):
        places.unit.unlink()
    systemd.control("daemon-reload")


def _check_reach(interpreter: Path) -> None:
    """The service's own user has to be able to run what the administrator has installed."""
    for folder in _folders(interpreter):
        if not folder.stat().st_mode & 0o001:
            raise ConfigurationError(
                f"{interpreter} is closed to the service's own user at {folder}: install the agent elsewhere, "
                f"such as by python3 -m venv /opt/{NAME}, or use --user"
            )


def _folders(interpreter: Path) -> list[Path]:
    """Every folder on the way to ``interpreter``, and to what a virtual environment's link means by it."""
    return [*interpreter.parents, *interpreter.resolve().parents]


def _make_account(root: Path) -> None:
    """The user, and the owners of the settings; as files that stay, so that the machine can be rebuilt from them."""
    for tool, folder, text in (
        ("systemd-sysusers", "sysusers.d", sysusers_text()),
        ("systemd-tmpfiles", "tmpfiles.d", tmpfiles_text()),
    ):
        path = root / "etc" / folder / f"{NAME}.conf"
        _write(path, text)
        create = ["--create"] if tool == "systemd-tmpfiles" else []
        done = subprocess.run([tool, f"--root={root}", *create, path], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceManagerError(f"{tool} {path} failed: {done.stderr.strip()}")


def _write(path: Path, text: str) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def is_root() -> bool:
    """Whether the machine's own service is meant where nothing else is said."""
    return os.geteuid() == 0
