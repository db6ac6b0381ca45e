"""A known board or phone: what it is, and what its owner lets a background agent use.

Profiles are TOML files in ``device_profiles/``, one a device, each figure with its source. They serve planning before a
device has been seen, and limit an agent on a larger machine to what the device would have.
"""

from __future__ import annotations

import difflib
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec

from edge_sdk.errors import ConfigurationError, UnknownProfileError
from edge_sdk.protocol.messages import Name, Positive

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIB = 1 << 20
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
_PACKAGE = "device_profiles"  # a folder of data without code, in a checkout as in an installation


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the agent may use: resident memory of a training process, of an inference process, and threads."""

    training_memory_mib: Positive
    inference_memory_mib: Positive
    threads: Positive


class BatteryFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A battery, and what the device draws from it."""

    capacity_wh: PositiveFloat
    idle_watts: PositiveFloat
    training_watts: PositiveFloat


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where figures come from: which fields, from which document, read when (ISO date)."""

    fields: tuple[str, ...]
    document: str
    read: str


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of ``device_profiles/``."""

    name: Name
    title: str
    kind: str
    cpu: str
    cores: Positive
    memory_total_mib: Positive
    limits: Limits
    battery: BatteryFigures | None = None
    sources: tuple[Source, ...]


def profile_names() -> tuple[str, ...]:
    """Every profile that is installed, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in files(_PACKAGE).iterdir() if entry.name.endswith(".toml"))
    )


def load_profile(name_or_path: str) -> DeviceProfile:
    """The profile of this name, or in the TOML file at this path.

    Raises ``UnknownProfileError`` where there is none, ``ConfigurationError`` where the file is malformed.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UnknownProfileError(f"device profile {name_or_path} does not exist; give a name or another path")
        return _parse(name_or_path, path.read_bytes())
    names = profile_names()
    if name_or_path not in names:
        close = difflib.get_close_matches(name_or_path, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"
        raise UnknownProfileError(f"device profile {name_or_path!r} is unknown; {hint}")
    return _parse(name_or_path, files(_PACKAGE).joinpath(f"{name_or_path}.toml").read_bytes())


def _parse(name: str, text: bytes) -> DeviceProfile:
    try:
        return msgspec.convert(tomllib.loads(text.decode()), DeviceProfile)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"device profile {name} cannot be read: {error}") from error
