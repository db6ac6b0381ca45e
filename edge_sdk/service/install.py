"""Installs the unit, its user and a settings file where systemd looks for them, and removes the unit again."""

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
    """The paths of a service's files.

    ``own`` is for a service of the ordinary user, not the machine; ``root`` is "/", or another folder in tests.
    """

    own: bool
    root: Path = Path("/")

    @property
    def unit(self) -> Path:
        """The unit that :func:`install` writes."""
        return (user_config_path("systemd") / "user" if self.own else self.root / "etc/systemd/system") / UNIT

    @property
    def drop_in(self) -> Path:
        """The drop-in that follows from the settings; also for a unit that a package installed."""
        return self.unit.with_name(f"{UNIT}.d") / "settings.conf"

    @property
    def installed(self) -> Path | None:
        """The unit that exists: the one of :func:`install`, else a package's; ``None`` if there is neither."""
        units = (self.unit, *(() if self.own else (self.root / "lib/systemd/system" / UNIT,)))
        return next((unit for unit in units if unit.exists()), None)

    @property
    def config(self) -> Path:
        """The settings file that the service uses by default."""
        return (user_config_path(NAME) if self.own else self.root / "etc" / NAME) / "agent.toml"


def unit_for(config: Path, *, own: bool, memory_mib: int | None = None, cpu: int | None = None) -> Unit:
    """A unit that runs this interpreter's agent with the settings file ``config``, and with limits if given.

    ``memory_mib`` is in MiB; ``cpu`` is in percent, 100 for each core.
    """
    return Unit(
        command=(sys.executable, "-m", "edge_sdk.cli"),
        config=config.absolute(),
        own=own,
        reads_home=lies_in_home(Path(sys.executable), config),
        memory_max_mib=memory_mib,
        cpu_percent=cpu,
    )


def follow_settings(places: Places, systemd: Systemd) -> None:
    """Write the drop-in of the installed unit, if there is one. Called before each start.

    Raises ``ConfigurationError``, ``StorageError`` or ``ServiceManagerError``.
    """
    if places.installed is not None:
        with disk_errors(places.installed):
            unit = places.installed.read_text(encoding="utf-8")
        _write(places.drop_in, drop_in_text(unit))
        systemd.control("daemon-reload")


def install(unit: Unit, places: Places, systemd: Systemd) -> bool:
    """Write and enable ``unit``; whether its settings file existed. If not, an example is written in its place.

    Raises ``ConfigurationError`` if a setting is wrong, or if the machine's service user cannot reach the interpreter;
    ``StorageError``, such as for the machine's unit without root's rights; and ``ServiceManagerError``.
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
    """Stop the service and remove its unit; settings and state stay. ``ConfigurationError`` if there is none."""
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
    """Raise ``ConfigurationError`` if the service's own user cannot reach ``interpreter``."""
    for folder in _folders(interpreter):
        if not folder.stat().st_mode & 0o001:
            raise ConfigurationError(
                f"{interpreter} is closed to the service's own user at {folder}: install the agent elsewhere, "
                f"such as by python3 -m venv /opt/{NAME}, or use --user"
            )


def _folders(interpreter: Path) -> list[Path]:
    """Every folder on the path to ``interpreter``, and to the target of a virtual environment's link."""
    return [*interpreter.parents, *interpreter.resolve().parents]


def _make_account(root: Path) -> None:
    """Create the service's user and set the owners of its folders, by configuration files that stay on the machine."""
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
    """Whether this process runs as root; then the machine's service is meant by default."""
    return os.geteuid() == 0
