"""The values that the store holds: one class per noun, with the fields of its table.

Fields that end in ``_s`` are times in seconds since the epoch. A ``digest`` is a SHA-256 in hexadecimal.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.store.plan import Plan
from coordinator.store.states import (
    DEFAULT_GROUP,
    NOT_SEEN,
    AccessRole,
    AssignmentStatus,
    Outcome,
    Phase,
    RolloutStatus,
    TaskStatus,
)
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import BlobEntry, Failure, ReleaseReport, Snapshot, TrainingReport, Verdict
from edge_sdk.protocol.signing import Signature


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device that has enrolled or said hello.

    ``memory_factor`` multiplies the memory that the device reports as available. From ``revoked_s`` on, its messages
    are ignored.
    """

    id: str
    profile: str
    session: int
    online: bool
    snapshot: Snapshot | None
    memory_factor: float
    last_seen_s: float
    group: str = DEFAULT_GROUP
    revoked_s: float | None = None

    @property
    def has_said_hello(self) -> bool:
        """Whether the device has ever connected."""
        return self.profile != NOT_SEEN


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task; ``config`` is its encoded :class:`coordinator.config.TaskConfig`.

    ``failure`` is the reason for which it failed, if it has failed and the reason is known. ``forgiven`` is the number
    of its first rounds whose failures no longer count, because an operator has started it again since.
    """

    name: str
    created_s: float
    status: TaskStatus
    config: bytes
    failure: str | None = None
    forgiven: int = 0


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A global model: version 0 is the permuted foundation model, version n the result of round n."""

    task: str
    number: int
    digest: str
    blobs: tuple[BlobEntry, ...]
    created_s: float


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round; ``closed_s`` is the time at which it was closed or abandoned."""

    task: str
    number: int
    base_version: str
    phase: Phase
    quorum: int
    opened_s: float
    deadline_s: float
    closed_s: float | None = None


@dataclass(frozen=True, slots=True)
class OfferRecord:
    """The submodel that a device was asked to train in a round, and the outcome.

    ``parameters`` is the submodel's number of parameters. A batch is processed ``micro_batch_size`` examples at a time,
    or in one pass if ``None``. The device takes at most ``max_steps`` steps, or as many as the task's recipe says if
    ``None``.
    """

    task: str
    round: int
    device: str
    submodel: Submodel
    predicted_memory_bytes: int
    offered_s: float
    outcome: Outcome = Outcome.OFFERED
    failure: Failure | None = None
    detail: str = ""
    peak_memory_bytes: int | None = None
    answered_s: float | None = None
    parameters: int = 0
    micro_batch_size: int | None = None
    max_steps: int | None = None


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """An update and its verdict; ``weight`` is its weight in aggregation."""

    update_id: str
    task: str
    round: int
    device: str
    digest: str
    size_bytes: int
    weight: float
    report: TrainingReport
    verdict: Verdict
    reason: str
    received_s: float


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """How well the global model after a round, cut to ``width``, does on the coordinator's test examples.

    Round 0 is the model before the first round. ``accuracy`` is from 0 to 1, over ``samples`` targets.
    """

    task: str
    round: int
    width: str
    parameters: int
    accuracy: float
    loss: float
    samples: int


@dataclass(frozen=True, slots=True)
class RootRecord:
    """A version of the root of trust, as an encoded envelope."""

    version: int
    envelope: bytes
    created_s: float


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """A release of one version of a task's model; ``release`` numbers always rise.

    ``manifest`` holds the bytes that are signed: an encoded :class:`edge_sdk.protocol.releases.ReleaseManifest`.
    """

    release: int
    task: str
    version: int
    manifest: bytes
    signatures: tuple[Signature, ...]
    created_s: float


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """The rollout of a release; ``stage`` is the index of the last stage that is open."""

    rollout: int
    release: int
    task: str
    plan: Plan
    status: RolloutStatus
    stage: int
    created_s: float


@dataclass(frozen=True, slots=True)
class AssignmentRecord:
    """The export of a release that one device is to run; ``number`` always rises.

    The device is told once ``stage`` of its rollout is open. ``parameters`` is the submodel's number of parameters,
    ``reason`` says why the assignment failed, and ``changed_s`` is when its status last changed.
    """

    number: int
    rollout: int | None
    release: int
    task: str
    device: str
    stage: int
    export: str
    submodel: Submodel
    manifest: tuple[BlobEntry, ...]
    parameters: int
    status: AssignmentStatus
    reason: str = ""
    report: ReleaseReport | None = None
    changed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token of the API: the SHA-256 of its secret, and when it expires, if ever."""

    name: str
    role: AccessRole
    digest: str
    created_s: float
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class EnrolmentRecord:
    """A one-time enrolment token: the SHA-256 of its secret, when it expires, and which device has used it.

    If ``device`` is set, only that device may use it. If ``group`` is set, the device joins that group; otherwise it
    keeps its own.
    """

    digest: str
    device: str | None
    group: str | None
    created_s: float
    expires_s: float
    used_s: float | None = None
    used_by: str | None = None

    @property
    def id(self) -> str:
        """The name of the token for people: the start of its digest, which reveals nothing of the secret."""
        return self.digest[:12]


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A device's certificate in DER, by its serial number in hexadecimal; it is invalid from ``revoked_s`` on."""

    serial: str
    device: str
    issued_s: float
    expires_s: float
    certificate: bytes
    revoked_s: float | None = None


@dataclass(frozen=True, slots=True)
class PasswordRecord:
    """The broker password of a device of an open fleet, as the verifier that the broker checks it against."""

    device: str
    verifier: str
    created_s: float


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what, to what, and when."""

    entry: int
    at_s: float
    who: str
    action: str
    subject: str
