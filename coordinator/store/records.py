"""What the store holds, as values: one class a noun, with the fields of its table."""

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
    """A device that has enrolled or said hello; ``memory_factor`` scales what it says it can spare.

    Since ``revoked_s`` it is not heard.
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
        """Whether it was ever there."""
        return self.profile != NOT_SEEN


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task; ``config`` is its encoded :class:`coordinator.config.TaskConfig`.

    ``failure`` is why it failed, where it has and that is known. So many of its first rounds are ``forgiven``: what
    came to nothing of them does not count any more.
    """

    name: str
    created_s: float
    status: TaskStatus
    config: bytes
    failure: str | None = None
    forgiven: int = 0


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A global model: version 0 is the permuted foundation, version n the result of round n."""

    task: str
    number: int
    digest: str
    blobs: tuple[BlobEntry, ...]
    created_s: float


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round; ``closed_s`` is when it was decided."""

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
    """What a device was asked to train, and what came of it.

    ``parameters`` counts its submodel's; batches pass ``micro_batch_size`` examples at a time, or whole. It takes at
    most ``max_steps`` steps, or as many as the task's recipe says.
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
    """An update and its verdict; ``weight`` is what it counts in aggregation."""

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
    """How the global model after a round (0: before the first), cut to ``width``, does on the coordinator's texts."""

    task: str
    round: int
    width: str
    parameters: int
    accuracy: float
    loss: float
    samples: int


@dataclass(frozen=True, slots=True)
class RootRecord:
    """A root of trust: its encoded envelope."""

    version: int
    envelope: bytes
    created_s: float


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """A release of a version of a task's model; ``release`` rises.

    ``manifest`` is what is signed: an encoded :class:`edge_sdk.protocol.releases.ReleaseManifest`.
    """

    release: int
    task: str
    version: int
    manifest: bytes
    signatures: tuple[Signature, ...]
    created_s: float


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """A release on its way; ``stage`` is the last that is open."""

    rollout: int
    release: int
    task: str
    plan: Plan
    status: RolloutStatus
    stage: int
    created_s: float


@dataclass(frozen=True, slots=True)
class AssignmentRecord:
    """What one device is to run; ``number`` rises, ``parameters`` counts its submodel's.

    It is told once ``stage`` of its rollout is open. ``reason`` is why it failed, ``changed_s`` when that changed.
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
    """A token of the API: the SHA-256 of its secret, and until when it is good."""

    name: str
    role: AccessRole
    digest: str
    created_s: float
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class EnrolmentRecord:
    """A one-time token to enrol with: the SHA-256 of its secret, until when it is good, and who has used it.

    It is for ``device`` alone where one is named, which is put into ``group``, or stays where it is.
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
        """What people call it by, which tells nothing of the secret."""
        return self.digest[:12]


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A device's certificate (DER) by its serial number in hexadecimal; since ``revoked_s`` it is worth nothing."""

    serial: str
    device: str
    issued_s: float
    expires_s: float
    certificate: bytes
    revoked_s: float | None = None


@dataclass(frozen=True, slots=True)
class PasswordRecord:
    """What a device of an open fleet logs in to the broker with, as far as the broker needs it to tell."""

    device: str
    verifier: str
    created_s: float


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what, to what."""

    entry: int
    at_s: float
    who: str
    action: str
    subject: str
