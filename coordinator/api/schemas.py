"""The schemas of the API's requests and responses, as its OpenAPI document shows them.

Times are in seconds since 1970, on the coordinator's clock.
"""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from coordinator.config import read_task
from coordinator.delivery.approving import SignedManifest, manifest_of, signers
from coordinator.fleet.authority import span_of
from coordinator.fleet.folder import Fleet
from coordinator.store.database import Transaction
from coordinator.store.records import ReleaseRecord, RolloutRecord, RoundRecord, TaskRecord, VersionRecord
from coordinator.store.states import AccessRole, AssignmentStatus, Phase, RolloutStatus, TaskStatus
from edge_sdk.diagnosis.findings import Mark
from edge_sdk.protocol.releases import Precision, Root, read
from edge_sdk.protocol.signing import Envelope, Role

_I = TypeVar("_I")


def plain(value: object) -> dict[str, JsonValue]:
    """A struct as plain JSON values, in which there are no tuples, bytes or times."""
    decoded: dict[str, JsonValue] = msgspec.json.decode(msgspec.json.encode(value))
    return decoded


Plain = Annotated[dict[str, JsonValue], BeforeValidator(plain)]


class _Record(BaseModel):
    """A schema whose fields are read from a record of the store by the same names."""

    model_config = ConfigDict(from_attributes=True)


class Page(BaseModel, Generic[_I]):
    """One page of a list. Pass `after` to get the next page; it is null on the last one."""

    items: list[_I]
    after: str | None


class Problem(BaseModel):
    """An error, in one line, as on the command line."""

    error: str


class Device(_Record):
    """A device, as it last described itself."""

    id: str
    profile: str
    group: str
    online: bool
    last_seen_s: float
    revoked_s: float | None = Field(description="When it was revoked; null if it was not.")
    memory_factor: float = Field(
        description="Factor on the memory that the device reports; below 1 after it ran out of memory."
    )
    snapshot: Plain | None = Field(description="Its resources when it last asked for work.")


class Task(BaseModel):
    """A task: its status, its progress, and its settings by their names in the TOML file."""

    name: str
    status: TaskStatus
    failure: str | None = Field(description="Why it failed; null if it has not.")
    created_s: float
    rounds_closed: int
    version: int | None
    accuracy: dict[str, float] = Field(description="Accuracy of the newest version, 0 to 1, by width.")
    settings: Plain

    @classmethod
    def of(cls, tx: Transaction, known: TaskRecord) -> Task:
        """As the store has it."""
        latest = tx.versions.latest(known.name)
        evaluations = () if latest is None else tx.evaluations.of_round(known.name, latest.number)
        return cls(
            name=known.name,
            status=known.status,
            failure=known.failure,
            created_s=known.created_s,
            rounds_closed=tx.rounds.count(known.name, Phase.CLOSED),
            version=None if latest is None else latest.number,
            accuracy={one.width: one.accuracy for one in evaluations},
            settings=msgspec.to_builtins(read_task(known.config)),
        )


class Round(BaseModel):
    """A round: the devices that got an offer, what each did, and the result."""

    number: int
    phase: Phase
    quorum: int
    opened_s: float
    deadline_s: float
    closed_s: float | None
    outcomes: dict[str, str] = Field(description="Outcome by device: offered, paused, updated or failed.")
    uploaded_bytes: int
    accuracy: dict[str, float] = Field(description="Accuracy of the round's version, 0 to 1, by width.")

    @classmethod
    def of(cls, tx: Transaction, known: RoundRecord) -> Round:
        """As the store has it."""
        key = (known.task, known.number)
        return cls(
            number=known.number,
            phase=known.phase,
            quorum=known.quorum,
            opened_s=known.opened_s,
            deadline_s=known.deadline_s,
            closed_s=known.closed_s,
            outcomes={offer.device: offer.outcome.value for offer in tx.offers.of_round(*key)},
            uploaded_bytes=sum(update.size_bytes for update in tx.updates.accepted(*key)),
            accuracy={one.width: one.accuracy for one in tx.evaluations.of_round(*key)},
        )


class Version(BaseModel):
    """A version of a task's model: the result of the round with the same number."""

    number: int
    created_s: float
    accuracy: dict[str, float] = Field(description="Accuracy, 0 to 1, by width.")

    @classmethod
    def of(cls, tx: Transaction, known: VersionRecord) -> Version:
        """As the store has it."""
        found = tx.evaluations.of_round(known.task, known.number)
        accuracy = {one.width: one.accuracy for one in found}
        return cls(number=known.number, created_s=known.created_s, accuracy=accuracy)


class Assignment(_Record):
    """The assignment of an export to a device, and what the device reports about it."""

    number: int
    rollout: int | None
    release: int
    device: str
    stage: int
    export: str
    status: AssignmentStatus
    reason: str
    parameters: int
    report: Plain | None


class Release(BaseModel):
    """A release: its exports with their accuracy on the task's test examples, and its signatures."""

    release: int
    task: str
    version: int
    groups: list[str] = Field(description="Groups whose devices may run it; empty: all.")
    created_s: float
    expires_s: float
    signatures: int = Field(description="Number of signatures by keys that are currently trusted.")
    threshold: int = Field(description="Number of signatures that approval needs.")
    is_approved: bool
    exports: list[Plain]
    to_sign: Plain = Field(description="The file to sign, for `coordinator release sign`.")

    @classmethod
    def of(cls, tx: Transaction, known: ReleaseRecord) -> Release:
        """As the store has it."""
        manifest, (have, needed) = manifest_of(known), signers(tx, known)
        return cls(
            release=known.release,
            task=known.task,
            version=known.version,
            groups=list(manifest.groups),
            created_s=known.created_s,
            expires_s=manifest.expires_s,
            signatures=have,
            threshold=needed,
            is_approved=have >= needed,
            exports=[plain(export) for export in manifest.exports],
            to_sign=plain(SignedManifest(known.release, known.manifest)),
        )


class NewRelease(BaseModel):
    """A release to create from a task's model."""

    version: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="Version of the model; default: the newest."
    )
    groups: list[str] = Field(default=[], max_length=100, description="Groups whose devices may run it; empty: all.")
    precisions: list[Precision] = Field(
        default=[Precision.INT8], min_length=1, max_length=len(Precision), description="Precisions to export in."
    )
    days: float = Field(default=365.0, ge=0.01, le=36500, description="Days until it expires.")
    fleet: str | None = Field(
        default=None, pattern="^[a-z0-9-]{1,64}$", description="Name of the fleet; default: as set by `fleet init`."
    )
    threads: int = Field(default=2, ge=1, le=1024, description="Threads for evaluation.")


class Rollout(BaseModel):
    """A rollout: its plan, its stage, and the number of devices by status."""

    rollout: int
    release: int
    task: str
    status: RolloutStatus
    stage: int = Field(description="Index of the newest open stage of the plan, from 0.")
    plan: Plain
    devices: dict[AssignmentStatus, int]
    created_s: float

    @classmethod
    def of(cls, tx: Transaction, known: RolloutRecord) -> Rollout:
        """As the store has it."""
        return cls(
            rollout=known.rollout,
            release=known.release,
            task=known.task,
            status=known.status,
            stage=known.stage,
            plan=plain(known.plan),
            devices=dict(tx.assignments.standings(known.rollout)),
            created_s=known.created_s,
        )


class Move(BaseModel):
    """The group to move a device to."""

    group: str = Field(description="Name of a-z, 0-9 and '-', up to 64 characters; it need not exist yet.")


class NewToken(BaseModel):
    """A token to create."""

    name: str = Field(description="Name of a-z, 0-9 and '-', up to 64 characters.")
    role: AccessRole = AccessRole.VIEWER
    days: float | None = Field(default=None, gt=0, le=36500, description="Days until it expires; default: never.")


class Token(_Record):
    """A token without its secret."""

    name: str
    role: AccessRole
    created_s: float
    expires_s: float | None


class Secret(BaseModel):
    """The secret of a new token, to send as `Authorization: Bearer …`; it cannot be shown again."""

    secret: str


class NewEnrolment(BaseModel):
    """A one-time enrolment token to create; in an open fleet, the device's password at the broker."""

    device: str | None = Field(default=None, description="The device that may use it; default: any new one.")
    group: str | None = Field(default=None, description="Group to put the device in; default: the one that it is in.")
    hours: float | None = Field(
        default=None, gt=0, le=24 * 365, description="Hours until a one-time token expires; default: 24."
    )


class EnrolmentSecret(BaseModel):
    """An enrolment token, which cannot be shown again, and the command to type on the device (token in a file)."""

    secret: str
    command: str


class Enrolment(_Record):
    """An enrolment token without its secret."""

    id: str
    device: str | None
    group: str | None
    created_s: float
    expires_s: float
    used_s: float | None
    used_by: str | None


class Certificate(_Record):
    """A device's certificate; `serial` is its serial number in hexadecimal."""

    serial: str
    issued_s: float
    expires_s: float
    revoked_s: float | None


class Revocation(BaseModel):
    """The result of revoking a device. In any case the coordinator ignores the device from now on."""

    cut_off_s: float | None = Field(
        default=None, description="Seconds until the broker refused the device and its session had ended."
    )
    problem: str | None = Field(default=None, description="Why the broker may still admit it, and what to do.")


class Found(_Record):
    """The result of one of the doctor's checks; `advice` says what to do, and is empty if nothing is."""

    check: str
    mark: Mark
    found: str
    advice: str


class Examination(BaseModel):
    """The doctor's findings; `can_run` is false if one of them is a failure."""

    can_run: bool
    findings: list[Found]


class FleetTold(BaseModel):
    """A fleet with a certificate authority (CA), and what its devices are told."""

    name: str
    is_open: bool = Field(description="Whether devices log in to the broker with tokens instead of certificates.")
    broker: str = Field(description="Address of the broker for devices.")
    api: str = Field(description="Address at which devices enrol.")
    authority: str = Field(description="Fingerprint of the CA's certificate, for `edge-agent enroll --ca-fingerprint`.")
    good_until_s: float = Field(description="When the CA's certificate expires.")

    @classmethod
    def of(cls, fleet: Fleet) -> FleetTold:
        """As its folder has it."""
        _, ends_s = span_of(fleet.authority.certificate)
        settings, authority = fleet.settings, fleet.authority.fingerprint
        return cls(
            name=settings.name,
            is_open=settings.is_open,
            broker=settings.broker,
            api=settings.api,
            authority=authority,
            good_until_s=ends_s,
        )


class Signing(BaseModel):
    """The public keys (hexadecimal) whose signatures count in one role, and how many of them must sign."""

    threshold: int
    keys: list[str]


class TrustRoot(BaseModel):
    """A root of trust; `file` is the `root.json` that devices get."""

    version: int
    expires_s: float
    roles: dict[Role, Signing]
    signed_by: list[str]
    file: Plain

    @classmethod
    def of(cls, envelope: Envelope) -> TrustRoot:
        """What an envelope holds."""
        root = read(Root, envelope.payload)
        by_role = {Role.ROOT: root.root, Role.RELEASE: root.release, Role.ROUND: root.round}
        return cls(
            version=root.version,
            expires_s=root.expires_s,
            roles={
                role: Signing(threshold=each.threshold, keys=[key.hex() for key in each.keys])
                for role, each in by_role.items()
            },
            signed_by=[each.key.hex() for each in envelope.signatures],
            file=plain(envelope),
        )


class AuditEntry(_Record):
    """An entry of the audit log: who changed what, and when."""

    entry: int
    at_s: float
    who: str
    action: str
    subject: str
