"""``edge-agent doctor``: what it examines, and when an agent can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.device.system import System
from edge_sdk.diagnosis.findings import Finding, failed
from edge_sdk.errors import UnfitDeviceError
from edge_sdk.transport.address import MqttVersion


@dataclass(frozen=True, slots=True)
class Patient:
    """The machine to examine, and the settings that its owner means to run the agent with; ``None``: the default.

    ``config`` is the file that they are from, if there is one; ``flaw`` is why no agent can start with it, empty if one
    can. ``data`` is where its examples should be.
    """

    system: System
    state_dir: Path | None = None
    config: Path | None = None
    flaw: str = ""
    data: Path | None = None
    profile: str | None = None
    broker: str | None = None
    user: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    allow_plaintext: bool = False
    mqtt_version: MqttVersion = MqttVersion.ANY


Check = Callable[[Patient], Iterator[Finding]]


def require_fit(findings: Sequence[Finding]) -> None:
    """Raise ``UnfitDeviceError``, naming the checks that failed, if an agent cannot run."""
    if names := failed(findings):
        raise UnfitDeviceError(f"the agent cannot run here, see above: {', '.join(names)}")
