"""Puts the unit where systemd looks for it, with its user and its file of settings, and takes it away again."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path

from edge_sdk.disk import disk_errors
from edge_sdk.errors import ConfigurationError
from edge_sdk.service.following import drop_in_text, lies_in_home
from edge_sdk.service.systemd import Systemd, answer_of
from edge_sdk.service.unit import NAME, UNIT, Unit, sysusers_text, tmpfiles_text, unit_text
from edge_sdk.settings import example_file


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
    def drop_in(self) -> Path:
        """What follows from the settings, beside the unit; also of a unit that a package brings."""
        return self.unit.with_name(f"{UNIT}.d") / "settings.conf"

    @property
    def installed(self) -> Path | None:
        """The unit that there is: that of :func:`install` before a package's."""
        units = (self.unit, *(() if self.own else (self.root / "lib/systemd/system" / UNIT,)))
        return next((unit for unit in units if unit.exists()), None)

    @property
    def config(self) -> Path:
        """The settings that the service runs with, unless others are named."""
        return (user_config_path(NAME) if self.own else self.root / "etc" / NAME) / "agent.toml"


def unit_for(config: Path, *, own: bool, memory_mib: int | None = None, cpu: int | None = None) -> Unit:
    """The unit that runs this interpreter's agent, with the limits that are given."""
    return Unit(
        command=(sys.executable, "-m", "edge_sdk.cli"),
        config=config.absolute(),
        own=own,
        reads_home=lies_in_home(Path(sys.executable), config),
        memory_max_mib=memory_mib,
        cpu_percent=cpu,
    )


def follow_settings(places: Places, systemd: Systemd) -> None:
    """Write what follows from the settings beside the unit that is installed, where one is; before each start.

    Raises ``ConfigurationError``; ``StorageError``; ``ServiceManagerError``.
    """
    if places.installed is not None:
        with disk_errors(places.installed):
            unit = places.installed.read_text(encoding="utf-8")
        _write(places.drop_in, drop_in_text(unit))
        systemd.control("daemon-reload")


def install(unit: Unit, places: Places, systemd: Systemd) -> bool:
    """Write and enable ``unit``; whether its settings were there, otherwise an example was written in their place.

    Raises ``ConfigurationError`` for the machine's unit without being root, where its user cannot reach the
    interpreter, or where settings are wrong; ``StorageError``; ``ServiceManagerError``.
    """
    if not unit.own:
        _check_reach(Path(unit.command[0]))
    text = unit_text(unit)
    drop_in = drop_in_text(text)
    configured = unit.config.exists()
    if not configured:
        _write(unit.config, example_file())
    if not unit.own:
        _make_account(places.root)
    _write(places.unit, text)
    _write(places.drop_in, drop_in)
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
        places.drop_in.unlink(missing_ok=True)
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
        answer_of(tool, f"--root={root}", *create, str(path))


def _write(path: Path, text: str) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def is_root() -> bool:
    """Whether the machine's own service is meant where nothing else is said."""
    return os.geteuid() == 0
