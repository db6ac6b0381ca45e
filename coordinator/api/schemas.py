"""What the API answers, as its OpenAPI document says it. Times are seconds since 1970, on the coordinator's clock."""

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
    """Some of the answer; ``after`` is what to ask for the next with, nothing at the end."""

    items: list[_I]
    after: str | None


class Problem(BaseModel):
    """What is wrong, in the words of the command line."""

    error: str


class Device(_Record):
    """A device, as it last said that it is."""

    id: str
    profile: str
    group: str
    online: bool
    last_seen_s: float
    revoked_s: float | None = Field(description="Since when it is not heard.")
    memory_factor: float = Field(description="What the device's own figure of memory is multiplied by.")
    snapshot: Plain | None = Field(description="What it could spare when it last asked for work.")


class Task(BaseModel):
    """A task, how far it is, and its settings under the names that they have in TOML."""

    name: str
    status: TaskStatus
    failure: str | None = Field(description="Why it failed, where it has.")
    created_s: float
    rounds_closed: int
    version: int | None
    accuracy: dict[str, float] = Field(description="Of the newest version, 0 to 1, by width.")
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
            rounds_closed=sum(one.phase is Phase.CLOSED for one in tx.rounds.all(known.name)),
            version=None if latest is None else latest.number,
            accuracy={one.width: one.accuracy for one in evaluations},
            settings=msgspec.to_builtins(read_task(known.config)),
        )


class Round(BaseModel):
    """A round: whom it asked, who delivered, and what became of it."""

    number: int
    phase: Phase
    quorum: int
    opened_s: float
    deadline_s: float
    closed_s: float | None
    outcomes: dict[str, str] = Field(description="By device: offered, paused, updated or failed.")
    uploaded_bytes: int
    accuracy: dict[str, float] = Field(description="Of the version that it made, 0 to 1, by width.")

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
    """A version of a task's model: the result of the round of its number."""

    number: int
    created_s: float
    accuracy: dict[str, float] = Field(description="0 to 1, by width.")

    @classmethod
    def of(cls, tx: Transaction, known: VersionRecord) -> Version:
        """As the store has it."""
        found = tx.evaluations.of_round(known.task, known.number)
        accuracy = {one.width: one.accuracy for one in found}
        return cls(number=known.number, created_s=known.created_s, accuracy=accuracy)


class Assignment(_Record):
    """A model that a device is to run, and what the device says of it."""

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
    """A release: its exports, each with its accuracy on the task's test examples, and how far it is from going out."""

    release: int
    task: str
    version: int
    groups: list[str] = Field(description="Whose devices may run it; all where none is named.")
    created_s: float
    expires_s: float
    signatures: int = Field(description="Of release keys that count now.")
    threshold: int
    is_approved: bool
    exports: list[Plain]
    to_sign: Plain = Field(description="What `coordinator release sign` takes as a file.")

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
    """A release to make of a task's model."""

    version: int | None = Field(default=None, ge=0, le=2**31 - 1, description="The newest if not named.")
    groups: list[str] = Field(default=[], max_length=100, description="Whose devices may run it; all if none is named.")
    precisions: list[Precision] = Field(default=[Precision.INT8], min_length=1, max_length=len(Precision))
    days: float = Field(default=365.0, ge=0.01, le=36500, description="Until it expires.")
    fleet: str | None = Field(
        default=None, pattern="^[a-z0-9-]{1,64}$", description="The fleet's name; the authority's, or default."
    )
    threads: int = Field(default=2, ge=1, le=1024, description="For evaluation.")


class Rollout(BaseModel):
    """A release on its way: how far it is, and how many of its devices stand how."""

    rollout: int
    release: int
    task: str
    status: RolloutStatus
    stage: int = Field(description="The last of the plan's stages that is open, from 0.")
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
    """Where a device shall be."""

    group: str = Field(description="Of a-z, 0-9 and '-', at most 64; it need not exist yet.")


class NewToken(BaseModel):
    """A token to make."""

    name: str = Field(description="Of a-z, 0-9 and '-', at most 64.")
    role: AccessRole = AccessRole.VIEWER
    days: float | None = Field(default=None, gt=0, le=36500, description="Until it expires; never where not named.")


class Token(_Record):
    """A token without its secret."""

    name: str
    role: AccessRole
    created_s: float
    expires_s: float | None


class Secret(BaseModel):
    """What a new token's bearer sends as ``Authorization: Bearer …``; it is not shown again."""

    secret: str


class NewEnrolment(BaseModel):
    """A one-time token to make, with which a device enrols; in an open fleet, the device's password at the broker."""

    device: str | None = Field(default=None, description="The only one that it is for; else any that is new.")
    group: str | None = Field(default=None, description="Where the device is put.")
    hours: float | None = Field(
        default=None, gt=0, le=24 * 365, description="Until a one-time token expires; 24 where it is left out."
    )


class EnrolmentSecret(BaseModel):
    """A one-time token, which is not shown again, and what to type on the device once it is in a file there."""

    secret: str
    command: str


class Enrolment(_Record):
    """A one-time token without its secret."""

    id: str
    device: str | None
    group: str | None
    created_s: float
    expires_s: float
    used_s: float | None
    used_by: str | None


class Certificate(_Record):
    """A device's certificate, by its serial number in hexadecimal."""

    serial: str
    issued_s: float
    expires_s: float
    revoked_s: float | None


class Revocation(BaseModel):
    """How long it took until the broker was seen to refuse the device and its session had ended, or what is left to do.

    Either way the coordinator hears it no more.
    """

    cut_off_s: float | None = None
    problem: str | None = None


class Found(_Record):
    """One line of the doctor's: what is so, and what to do about it, empty where nothing has to be done."""

    check: str
    mark: Mark
    found: str
    advice: str


class Examination(BaseModel):
    """What the doctor finds; ``can_run`` where nothing of it is a failure."""

    can_run: bool
    findings: list[Found]


class FleetTold(BaseModel):
    """A fleet with an authority, and what it tells its devices."""

    name: str
    is_open: bool = Field(description="Whether devices log in to the broker with tokens, and have no certificates.")
    broker: str
    api: str
    authority: str = Field(description="The digest of its certificate, as `edge-agent enroll` takes it.")
    good_until_s: float

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
    """Whose signatures count in one role, in hexadecimal, and how many of them it takes."""

    threshold: int
    keys: list[str]


class TrustRoot(BaseModel):
    """A root of trust; ``file`` is what devices are given as ``root.json``."""

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
    """Who changed what."""

    entry: int
    at_s: float
    who: str
    action: str
    subject: str
