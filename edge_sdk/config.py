"""What the owner of a device decides about its agent; every limit is a field here, with its unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_state_path

from edge_sdk.data.images import IMAGE_SIZE
from edge_sdk.device.policy import Policy
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.errors import ConfigurationError, SettingError
from edge_sdk.protocol.topics import check_name
from edge_sdk.transport.address import MqttVersion

_SEEDS = 1 << 32


def default_state_dir(device: str) -> Path:
    """The platform's own folder for the state of the agent of this name."""
    return user_state_path("raffm-edge") / device


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """One agent. ``profile`` is a name from ``device_profiles/`` or a path; ``None`` measures this machine instead.

    ``root`` is the file that says whose releases are trusted; without it every release is refused.
    ``runtime`` is what trains, on ``threads`` at most where they are given. ``providers`` are onnxruntime's to use
    before the processor, the first first; ``None`` is CUDA where it is there. Pictures are kept as squares of
    ``image_size`` pixels a side, at least the model's.
    ``held_out_share`` of the examples is never trained on and measures each released model.
    ``cache_bytes`` bounds what lies on the disk of models to train and updates on their way; the model that runs lies
    beside it. A round takes the submodel and, for its update, its trained part once more: 0.13 GiB for all of MiniLM.
    What room is left keeps what comes back in later rounds.
    Raises ``ConfigurationError`` where a value cannot be right.
    """

    device: str
    broker: str
    fleet: str = "default"
    profile: str | None = None
    state_dir: Path
    root: Path | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    allow_plaintext: bool = False
    mqtt_version: MqttVersion = MqttVersion.ANY
    policy: Policy = field(default_factory=Policy)
    runtime: Runtime = Runtime.ONNX
    providers: tuple[str, ...] | None = None
    mixed_precision: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    held_out_share: float = 0.1
    cache_bytes: int = 1 << 30
    image_size: int = IMAGE_SIZE
    threads: int | None = None
    ready_interval_s: float = 10.0
    resend_first_s: float = 2.0
    resend_most_s: float = 60.0

    def __post_init__(self) -> None:
        check_name(self.device, "device")
        check_name(self.fleet, "fleet")
        if self.runtime is Runtime.TORCH and find_spec("torch") is None:
            raise ConfigurationError(
                "runtime torch needs torch, which is not installed: pip install 'raffm-edge[torch]'"
            )
        if not 0 <= self.held_out_share < 1:
            raise SettingError("held_out_share", self.held_out_share, "must be from 0 up to, not including, 1")
        if self.cache_bytes <= 0:
            raise SettingError("cache_bytes", self.cache_bytes, "must be positive")
        if self.threads is not None and self.threads < 1:
            raise SettingError("threads", self.threads, "must be at least 1")
        if not 0 <= self.seed < _SEEDS:
            raise SettingError("seed", self.seed, f"must be from 0 up to, not including, {_SEEDS}")
        if self.image_size < 1:
            raise SettingError("image_size", self.image_size, "must be at least 1 pixel")
        for name in ("ready_interval_s", "resend_first_s", "resend_most_s"):
            if not 0 < getattr(self, name) < math.inf:  # neither holds of nan
                raise SettingError(name, getattr(self, name), "must be positive and finite")
