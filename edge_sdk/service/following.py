"""Directives that follow from a service's settings: the text of a drop-in beside its unit, rewritten at every start.

They are not part of the unit: settings are filled in after the unit is installed, and a package's unit knows none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.profile import load_profile
from edge_sdk.service.limits import cpu_percent, memory_max_mib
from edge_sdk.service.unit import config_of
from edge_sdk.settings import read_file

_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


def drop_in_text(unit: str) -> str:
    """The drop-in for the settings file that the text of a ``unit`` names; limits in the unit itself stay.

    The file may be incomplete or missing. Raises ``ConfigurationError`` for a wrong setting.
    """
    config = config_of(unit)
    settings = read_file(config) if config.exists() else {}
    given = {name for name in ("MemoryMax", "CPUQuota") if f"\n{name}=" in unit}
    lines = [f"{name}={value}" for name, value in _directives(settings, unit) if name not in given]
    return "\n".join(("# of the settings; written by `edge-agent service start`", "[Service]", *lines, ""))


def lies_in_home(*paths: Path) -> bool:
    """Whether any path, or the target of a link on its way, lies where ``ProtectHome=yes`` would hide it."""
    folders = {folder for path in paths for folder in (*path.absolute().parents, *path.resolve().parents)}
    return not folders.isdisjoint(_HOMES)


def _directives(settings: Mapping[str, Any], unit: str) -> Iterable[tuple[str, str]]:
    if (name := settings.get("profile")) is not None:
        profile = load_profile(name)
        yield from (("MemoryMax", f"{memory_max_mib(profile)}M"), ("CPUQuota", f"{cpu_percent(profile)}%"))
    if settings.get("runtime") is Runtime.TORCH:  # oneDNN compiles its kernels at run time
        yield "MemoryDenyWriteExecute", "no"
    if "\nProtectHome=yes\n" in unit and lies_in_home(*_read(settings)):
        yield "ProtectHome", "read-only"


def _read(settings: Mapping[str, Any]) -> list[Path]:
    """The files that the settings name; not the state folder, since the service has one of its own."""
    profile = settings.get("profile") or ""
    named = [value for name, value in settings.items() if isinstance(value, Path) and name != "state_dir"]
    return [*named, Path(profile)] if profile.endswith(".toml") else named
