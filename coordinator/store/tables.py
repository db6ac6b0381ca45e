"""The tables of the store. Times are seconds since the epoch, so that they keep their meaning over a restart.

The SQL is portable: one schema serves SQLite and PostgreSQL. Every change to it needs a revision in :mod:`.migrations`.
Structured values are stored as JSON text of typed structs, so a value that does not fit its type fails when it is read,
not later when it is used.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

from coordinator.store.plan import Plan
from coordinator.store.states import (
    DEFAULT_GROUP,
    AccessRole,
    AssignmentStatus,
    Outcome,
    Phase,
    RolloutStatus,
    TaskStatus,
)
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import StorageError
from edge_sdk.protocol.messages import BlobEntry, Failure, ReleaseReport, Snapshot, TrainingReport, Verdict
from edge_sdk.protocol.signing import Signature

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Enum)


class Json(TypeDecorator[_T]):
    """A value of one type, stored as JSON text."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[_T]) -> None:
        super().__init__()
        self.kind = kind
        self._decoder = msgspec.json.Decoder(kind)

    def process_bind_param(self, value: _T | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Encode a value as JSON; ``None`` becomes NULL."""
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> _T | None:  # noqa: ARG002
        """Decode a value from JSON. Raises ``StorageError`` if the text does not fit the type."""
        if value is None:
            return None
        try:
            return self._decoder.decode(value)
        except msgspec.DecodeError as error:
            raise StorageError(f"store holds a value that cannot be read ({error}): {value[:100]!r}") from error


class Words(TypeDecorator[str]):
    """Text that may be a device's, with U+FFFD for the character NUL, which PostgreSQL does not store."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """The text without NUL."""
        return None if value is None else value.replace("\0", "\ufffd")


class Named(TypeDecorator[_E]):
    """A member of an enum, stored as its value."""

    impl = String(32)
    cache_ok = True

    def __init__(self, kind: type[_E]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: _E | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """The member's value; ``None`` becomes NULL."""
        return None if value is None else str(value.value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> _E | None:  # noqa: ARG002
        """The member with this value; NULL becomes ``None``. Raises ``ValueError`` if there is none."""
        return None if value is None else self.kind(value)


metadata = MetaData(
    naming_convention={  # a migration can change a constraint only if it has a name
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

devices = Table(
    "devices",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("profile", String(64), nullable=False),
    Column("session", BigInteger, nullable=False),
    Column("online", Boolean, nullable=False),
    Column("snapshot", Json(Snapshot)),
    Column("memory_factor", Float, nullable=False),
    Column("last_seen_s", Float, nullable=False),
    Column("group", String(64), nullable=False, server_default=DEFAULT_GROUP),
    Column("revoked_s", Float),
)

tasks = Table(
    "tasks",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("created_s", Float, nullable=False),
    Column("status", Named(TaskStatus), nullable=False),
    Column("config", LargeBinary, nullable=False),
    Column("failure", Words),
    Column("forgiven", Integer, nullable=False, server_default="0"),
)

versions = Table(
    "versions",
    metadata,
    Column("task", ForeignKey("tasks.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("blobs", Json(tuple[BlobEntry, ...]), nullable=False),
    Column("created_s", Float, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("task", ForeignKey("tasks.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("base_version", String(64), nullable=False),
    Column("phase", Named(Phase), nullable=False),
    Column("quorum", Integer, nullable=False),
    Column("opened_s", Float, nullable=False),
    Column("deadline_s", Float, nullable=False),
    Column("closed_s", Float),
)

offers = Table(
    "offers",
    metadata,
    Column("task", String(64), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("submodel", Json(Submodel), nullable=False),
    Column("predicted_memory_bytes", BigInteger, nullable=False),
    Column("outcome", Named(Outcome), nullable=False),
    Column("failure", Named(Failure)),
    Column("detail", Words, nullable=False),
    Column("peak_memory_bytes", BigInteger),
    Column("offered_s", Float, nullable=False),
    Column("answered_s", Float),
    Column("parameters", BigInteger, nullable=False),
    Column("micro_batch_size", Integer),
    Column("max_steps", Integer),
    ForeignKeyConstraint(["task", "round"], ["rounds.task", "rounds.number"]),
    Index(None, "device", "offered_s"),  # finds a device's newest offer among those of thousands of rounds
)

updates = Table(
    "updates",
    metadata,
    Column("update_id", String(64), primary_key=True),
    Column("task", String(64), nullable=False),
    Column("round", Integer, nullable=False),
    Column("device", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("weight", Float, nullable=False),
    Column("report", Json(TrainingReport), nullable=False),
    Column("verdict", Named(Verdict), nullable=False),
    Column("reason", Words, nullable=False),
    Column("received_s", Float, nullable=False),
    UniqueConstraint("task", "round", "device"),
    ForeignKeyConstraint(["task", "round", "device"], ["offers.task", "offers.round", "offers.device"]),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("task", String(64), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("width", String(64), primary_key=True),
    Column("parameters", BigInteger, nullable=False),
    Column("accuracy", Float, nullable=False),
    Column("loss", Float, nullable=False),
    Column("samples", Integer, nullable=False),
    ForeignKeyConstraint(["task"], ["tasks.name"]),
)

roots = Table(
    "roots",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("created_s", Float, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("release", Integer, primary_key=True),
    Column("task", ForeignKey("tasks.name"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("signatures", Json(tuple[Signature, ...]), nullable=False),
    Column("created_s", Float, nullable=False),
    sqlite_autoincrement=True,  # a number is never used twice: devices refuse a lower one than they have seen
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("rollout", Integer, primary_key=True),
    Column("release", ForeignKey("releases.release"), nullable=False),
    Column("task", ForeignKey("tasks.name"), nullable=False),
    Column("plan", Json(Plan), nullable=False),
    Column("status", Named(RolloutStatus), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("created_s", Float, nullable=False),
    sqlite_autoincrement=True,
)

assignments = Table(
    "assignments",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("rollout", ForeignKey("rollouts.rollout")),
    Column("release", Integer, nullable=False),
    Column("task", ForeignKey("tasks.name"), nullable=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("export", String(64), nullable=False),
    Column("submodel", Json(Submodel), nullable=False),
    Column("manifest", Json(tuple[BlobEntry, ...]), nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("status", Named(AssignmentStatus), nullable=False),
    Column("reason", Words, nullable=False),
    Column("report", Json(ReleaseReport)),
    Column("changed_s", Float, nullable=False),
    Index(None, "task", "device", "number"),
    Index(None, "device"),
    Index(None, "rollout"),
    sqlite_autoincrement=True,  # as for releases: devices refuse a lower number than they have seen
)

tokens = Table(
    "tokens",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", Named(AccessRole), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float),
)

enrolments = Table(
    "enrolments",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("device", String(64)),
    Column("group", String(64)),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("used_s", Float),
    Column("used_by", String(64)),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),
    Column("device", ForeignKey("devices.id"), nullable=False, index=True),
    Column("issued_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("revoked_s", Float),
    Column("certificate", LargeBinary, nullable=False),
)

passwords = Table(
    "passwords",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("verifier", String(256), nullable=False),
    Column("created_s", Float, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("entry", Integer, primary_key=True),
    Column("at_s", Float, nullable=False),
    Column("who", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", Words, nullable=False),
    sqlite_autoincrement=True,
)
