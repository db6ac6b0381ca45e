"""Everything that an operator can set: the coordinator's own settings, and those of a task."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec
from platformdirs import user_cache_path

from coordinator.aggregation.admission import Limits
from coordinator.aggregation.rule import AdapterMerge, AggregationRule
from coordinator.planning.nesting import Nesting
from coordinator.planning.selection import DataSchema, Schedule, Targets
from coordinator.planning.space import Space
from edge_sdk.decoding import parse_toml
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, Role, TrainablePart
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import FP32, Encoding, EncodingKind, Recipe
from edge_sdk.transport.address import MqttVersion
from edge_sdk.transport.web import check_address


class Participation(str, Enum):
    """Which devices take part in a task's rounds: all, or only those that can train the whole model."""

    ALL = "all"
    ABLE = "able"


class Salience(str, Enum):
    """The metric that ranks heads and neurons before the permutation; see :mod:`coordinator.models.salience`."""

    TAYLOR = "taylor"
    L1 = "l1"
    L2 = "l2"
    ACTIVATION = "activation"
    RANDOM = "random"


STATE_DIR_VARIABLE = "RAFFM_COORDINATOR_STATE_DIR"
"""The environment variable that names the state folder for commands without ``--state-dir``."""
DEFAULT_RECIPE = Recipe(learning_rate=1e-4, batch_size=16, epochs=1, max_tokens=32)


_Number = Annotated[int, msgspec.Meta(ge=1, le=10**9)]  # PostgreSQL's integers end at about twice that


class TaskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training task. Paths are paths on the coordinator's machine.

    A round opens once ``min_devices`` have asked for work. After ``CoordinatorConfig.gather_s`` of waiting, ``quorum``
    of them are enough. It takes in all of them, or ``max_devices`` drawn by ``seed``. It ends when all of those have
    answered, or at ``round_deadline_s``, and counts if at least ``quorum`` updates have come.

    ``data`` selects the examples, ``targets`` the devices, and ``schedule`` the times at which a round may open.
    ``space`` says in what submodels may differ, ``nesting`` which narrower ones a device trains within its own. Devices
    send updates in ``encoding``, and ``admission`` limits which are accepted.

    Every version is evaluated at ``evaluated_shares`` of the model's width, and a release chooses among these and the
    largest submodel that fits. The newest ``keep_versions`` are kept, as are those that were released.

    Raises ``ConfigurationError`` if ``adapters`` do not go with ``part``, ``aggregation`` or ``encoding``, or cannot be
    cut, and if no round could ever open.
    """

    name: str
    model_dir: str
    calibration_file: str
    test_file: str
    rounds: _Number = 5
    participation: Participation = Participation.ALL
    min_devices: _Number = 1
    max_devices: _Number | None = None
    quorum: _Number = 1
    round_deadline_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 600.0
    recipe: Recipe = DEFAULT_RECIPE
    part: TrainablePart = TrainablePart.NO_EMBEDDINGS
    salience: Salience = Salience.TAYLOR
    adapters: Adapters | None = None
    aggregation: AggregationRule = AggregationRule()
    data: DataSchema = DataSchema()
    targets: Targets = Targets()
    schedule: Schedule = Schedule()
    nesting: Nesting = Nesting()
    space: Space = Space()
    encoding: Encoding = FP32
    admission: Limits = Limits()
    evaluated_shares: Annotated[tuple[Annotated[float, msgspec.Meta(gt=0, le=1)], ...], msgspec.Meta(min_length=1)] = (
        1.0,
        0.75,
        0.5,
        0.25,
    )
    keep_versions: _Number = 1
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    release: bool = True

    @property
    def offered_encoding(self) -> Encoding:
        """``encoding``, but without error feedback if the adapters' factors are made anew in every round.

        An error of old factors means nothing for new ones.
        """
        return msgspec.structs.replace(self.encoding, feedback=self.encoding.feedback and not self._remakes_factors)

    @property
    def _remakes_factors(self) -> bool:
        is_product = self.adapters is not None and self.adapters.method is not AdapterMethod.IA3
        return is_product and self.aggregation.adapters is not AdapterMerge.MEAN

    def __post_init__(self) -> None:
        if self.max_devices is not None and self.max_devices < self.quorum:
            raise ConfigurationError(
                f"a round takes in {self.max_devices} devices (max_devices), its quorum is {self.quorum}, "
                "so no round could open: raise max_devices or lower the quorum"
            )
        if self.encoding.kind is EncodingKind.TOPK and self._remakes_factors:
            raise ConfigurationError(
                f"topk sends in later rounds what it left out, but adapters merged by "
                f"{self.aggregation.adapters.value} are new in each round; use int8, or merge adapters by mean"
            )
        if self.adapters is None:
            return
        method, targets = self.adapters.method, {*self.adapters.targets}
        self.aggregation.check_adapters(method)
        if not method.has_graph and self.part is not TrainablePart.ADAPTERS:
            raise ConfigurationError(f"{method.value} adapters need part adapters, not {self.part.value}")
        if method is AdapterMethod.DORA and (uncut := targets & {Role.O, Role.DOWN}):
            names = " and ".join(sorted(role.value for role in uncut))
            raise ConfigurationError(
                f"dora cannot adapt {names}: a submodel cuts its inputs, and so changes the norms of its rows, which "
                "dora divides by; target q, k, v and up"
            )


# made once, on import: msgspec can crash if two threads use a type for the first time at the same moment
_tasks = msgspec.json.Decoder(TaskConfig)
_PATHS = ("model_dir", "calibration_file", "test_file")


def read_task(encoded: bytes) -> TaskConfig:
    """Decode a task from the store."""
    return _tasks.decode(encoded)


def encoded_task(config: TaskConfig) -> bytes:
    """Encode a task for the store. Raises ``ConfigurationError`` for an invalid value.

    Values that were set by a program or on the command line have not been checked before. JSON has no infinity and no
    NaN.
    """
    try:
        checked = msgspec.convert(msgspec.to_builtins(config), TaskConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"task {config.name!r} is invalid: {error}") from error
    encoded, is_read = msgspec.json.encode(checked), False
    with suppress(msgspec.ValidationError):
        is_read = _tasks.decode(encoded) == checked
    if not is_read:
        raise ConfigurationError(f"task {config.name!r} is invalid: it has a number that is not finite; use another")
    return encoded


def task_of_file(path: Path) -> TaskConfig:
    """Read a task from a TOML file; relative paths in it start at the file's folder.

    Raises ``ConfigurationError`` for a file that cannot be read, and for invalid settings.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"task file {path} cannot be read: {error.strerror}") from error
    return task_of_toml(data, f"task file {path}", path.absolute().parent)


def task_of_toml(data: bytes, place: str, folder: Path) -> TaskConfig:
    """A task from TOML; relative paths in it start at ``folder``. Errors, ``ConfigurationError``, call it ``place``."""
    says = parse_toml(data, place)
    says |= {name: str(folder / says[name]) for name in _PATHS if isinstance(says.get(name), str)}
    try:
        return msgspec.convert(says, TaskConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{place}: {error}") from error


def parse_encoding(text: str) -> Encoding:
    """Parse ``fp32``, ``fp16``, ``int8``, ``topk`` or ``topk:SHARE``. Raises ``ConfigurationError`` for all else."""
    kind, colon, share = text.partition(":")
    says = {"kind": kind, "share": share} if colon and kind == EncodingKind.TOPK.value else {"kind": text}
    try:
        return msgspec.convert(says, Encoding, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(
            f"encoding {text!r} is unknown; use fp32, fp16, int8, or topk:SHARE with a share above 0 and up to 1"
        ) from error


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """The state folder, the broker, and the limits of the service. Durations are in seconds.

    At ``blob_url`` a web server offers the files of the blob folder, by digest. Raises ``ConfigurationError`` if it is
    not an HTTPS address.
    """

    state_dir: Path
    broker: str
    fleet: str = "default"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    allow_plaintext: bool = False
    mqtt_version: MqttVersion = MqttVersion.ANY
    blob_url: str | None = None
    threads: int = 2
    exit_when_done: bool = False
    tasks_at_once: int = 4
    gather_s: float = 20.0
    lost_after_s: float = 30.0
    ready_valid_s: float = 60.0
    retry_after_s: float = 10.0
    release_deadline_s: float = 300.0
    assignment_valid_s: float = 86_400.0
    receive_timeout_s: float = 0.25

    def __post_init__(self) -> None:
        if self.blob_url is not None:
            check_address(self.blob_url)

    @property
    def template_cache(self) -> Path:
        """The folder of compiled templates: this user's cache, shared by all state folders, or one in the state folder.

        The latter is used if the cache cannot be written.
        """
        shared = user_cache_path("raffm-edge") / "templates"
        with suppress(OSError):  # a service's user may have no home folder that it can write to
            shared.mkdir(parents=True, exist_ok=True)
        return shared if os.access(shared, os.W_OK) else self.state_dir / "templates"

    @property
    def blob_dir(self) -> Path:
        """The folder of the content-addressed blobs."""
        return self.state_dir / "blobs"
