"""What the store holds, as values: one class a noun, with the fields of its table."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.store.states import DEFAULT_GROUP, AccessRole, Outcome, Phase, ReleaseStatus, TaskStatus
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import BlobEntry, Failure, ReleaseReport, Snapshot, TrainingReport, Verdict


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A device that has said hello; ``memory_factor`` scales what it says it can spare."""

    id: str
    profile: str
    session: int
    online: bool
    snapshot: Snapshot | None
    memory_factor: float
    last_seen_s: float
    group: str = DEFAULT_GROUP


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task; ``config`` is its encoded :class:`coordinator.config.TaskConfig`."""

    name: str
    created_s: float
    status: TaskStatus
    config: bytes


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
class ReleaseRecord:
    """A model for inference sent to one device; ``release`` rises, ``parameters`` counts its submodel's."""

    release: int
    task: str
    device: str
    submodel: Submodel
    manifest: tuple[BlobEntry, ...]
    status: ReleaseStatus
    report: ReleaseReport | None = None
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token of the API: the SHA-256 of its secret, and until when it is good."""

    name: str
    role: AccessRole
    digest: str
    created_s: float
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what, to what."""

    entry: int
    at_s: float
    who: str
    action: str
    subject: str
