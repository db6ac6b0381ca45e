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
from edge_sdk.text import plain_text
from edge_sdk.transport.address import MqttVersion

_SEEDS = 1 << 32  # times 1,000,003, which tells rounds apart, a seed still fits a job's 53 bits


def default_state_dir(device: str) -> Path:
    """The platform's own folder for the state of the agent of this name."""
    return user_state_path("raffm-edge") / device


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The settings of one agent. Raises ``ConfigurationError`` for a value that cannot be right.

    ``profile`` is a name from ``device_profiles/`` or a path; ``None`` measures this machine instead.
    ``root`` is the file that says whose releases are trusted; without it every release is refused.
    ``runtime`` trains, on at most ``threads`` threads if that is given. ``providers`` are the execution providers that
    onnxruntime tries before the processor, in this order; ``None`` tries CUDA.
    ``image_size`` is the side, in pixels, of the squares that pictures are stored as: at least the model's input size.
    ``held_out_share`` of the examples is never trained on; each released model is measured on it.
    ``cache_bytes`` bounds the disk space of models to train and of updates that are not delivered yet; the model that
    serves is stored apart from it. A round needs the submodel, and its trained part once more for the update: 0.13 GiB
    for the whole of MiniLM. The rest of the cache holds blobs that later rounds may use again.
    ``ready_interval_s`` is the time between two requests for work; ``resend_first_s`` and ``resend_max_s`` are the
    first and the longest pause before an unacknowledged update is sent again.
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
    resend_max_s: float = 60.0

    def __post_init__(self) -> None:
        check_name(self.device, "device")
        check_name(self.fleet, "fleet")
        if self.runtime is Runtime.TORCH and find_spec("torch") is None:
            raise ConfigurationError(
                "runtime torch needs torch, which is not installed: pip install 'raffm-edge[torch]'"
            )
        if plain_text(str(self.state_dir)) is None:
            raise SettingError("state_dir", str(self.state_dir), "is not UTF-8, as jobs and messages are: rename it")
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
        for name in ("ready_interval_s", "resend_first_s", "resend_max_s"):
            if not 0 < getattr(self, name) < math.inf:  # neither holds of nan
                raise SettingError(name, getattr(self, name), "must be positive and finite")
