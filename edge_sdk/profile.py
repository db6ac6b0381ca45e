"""A known board or phone: what it is, and what its owner lets a background agent use.

Profiles are TOML files in ``device_profiles/``, one per device, each figure with its source. They allow planning for a
device that has not been seen yet, and limit an agent on a larger machine to what the device would have. ``README.md``
there explains each field.
"""

from __future__ import annotations

import datetime as dt
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_sdk.decoding import parse_toml
from edge_sdk.elastic.runtimes import MIB
from edge_sdk.errors import ConfigurationError, UnknownProfileError, did_you_mean
from edge_sdk.protocol.messages import Name, Positive, Snapshot

PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Url = Annotated[str, msgspec.Meta(pattern=r"^https://[a-z0-9.-]+/\S+$")]
Kind = Literal["board", "phone", "gateway", "mini-pc"]
Architecture = Literal["aarch64", "armv7l", "x86_64"]  # as ``platform.machine()`` says it
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
    """The source of ``fields``: a document, when it was read, and its address, none for choices of this project."""

    fields: tuple[str, ...]
    document: str
    read: dt.date
    url: Url | None = None


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One file of ``device_profiles/``."""

    name: Name
    title: str
    kind: Kind
    architecture: Architecture | None = None
    cpu: str
    cores: Positive
    accelerator: str | None = None
    memory_total_mib: Positive
    note: str | None = None
    limits: Limits
    battery: BatteryFigures | None = None
    sources: tuple[Source, ...]

    @property
    def is_32_bit(self) -> bool:
        """Whether its system has 32 bits, for which onnxruntime has no wheel: no agent runs there."""
        return self.architecture == "armv7l"

    def at_rest(self) -> Snapshot:
        """What such a device says if nothing else runs on it: the most that it ever offers."""
        total_bytes = self.memory_total_mib * MIB
        return Snapshot(
            memory_total_bytes=total_bytes,
            memory_available_bytes=total_bytes,
            training_memory_bytes=self.limits.training_memory_mib * MIB,
            inference_memory_bytes=self.limits.inference_memory_mib * MIB,
            threads=self.limits.threads,
        )


def profile_names() -> tuple[str, ...]:
    """The names of all installed profiles, in natural order: 4 GB before 16 GB."""
    entries = (entry.name for entry in files(_PACKAGE).iterdir())
    return tuple(sorted((name.removesuffix(".toml") for name in entries if name.endswith(".toml")), key=_natural))


def all_profiles() -> tuple[DeviceProfile, ...]:
    """All installed profiles, in the order of :func:`profile_names`."""
    return tuple(load_profile(name) for name in profile_names())


def load_profile(name_or_path: str) -> DeviceProfile:
    """The profile of this name, or the one in the TOML file at this path.

    Raises ``UnknownProfileError`` if there is none, ``ConfigurationError`` if the file is malformed.

    >>> load_profile("raspberry-pi-5-8gb").limits
    Limits(training_memory_mib=512, inference_memory_mib=384, threads=4)
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise UnknownProfileError(
                f"device profile {name_or_path} does not exist; give the name of a known profile or another path"
            )
        return _parse(name_or_path, path.read_bytes())
    names = profile_names()
    if name_or_path not in names:
        hint = did_you_mean(name_or_path, names, otherwise="list them with: edge-agent profile --list")
        raise UnknownProfileError(f"device profile {name_or_path!r} is unknown; {hint}")
    return _parse(name_or_path, files(_PACKAGE).joinpath(f"{name_or_path}.toml").read_bytes())


def schema() -> str:
    """The file format as a JSON Schema, for editors; ``device_profiles/schema.json`` is a copy of it."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(DeviceProfile))).decode() + "\n"


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _parse(name: str, text: bytes) -> DeviceProfile:
    try:
        return msgspec.convert(parse_toml(text, f"device profile {name}"), DeviceProfile)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"device profile {name} cannot be read: {error}") from error
