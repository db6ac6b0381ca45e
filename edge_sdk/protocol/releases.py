"""What is signed about models for inference: whose keys count, what a release consists of, and what a device is to run.

A device runs an export of a release that the release keys have signed, and the one that an assignment of the round keys
names. Whoever steals the round keys can choose among releases, and ship none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar

import msgspec

from edge_sdk.decoding import UNDECODABLE
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import UntrustedError
from edge_sdk.protocol.messages import (
    BlobEntry,
    Count,
    Digest,
    Name,
    PixelMean,
    PixelStd,
    Positive,
    ReleaseReport,
    Seconds,
    Share,
    Standing,
    Text,
)
from edge_sdk.protocol.signing import Keys, Role, verify

MAX_EXPORTS = 64
Time = Annotated[float, msgspec.Meta(ge=0, le=1e11)]
"""Seconds since 1970."""
Labels = Annotated[tuple[Text, ...], msgspec.Meta(max_length=1000)]
Entries = Annotated[tuple[BlobEntry, ...], msgspec.Meta(max_length=16)]


class Precision(str, Enum):
    """What an export's weights are; in int8, with a scale a channel."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """Whose keys count for what, until when. The next has the next version, and is signed by the root keys of both."""

    version: Positive
    issued_s: Time
    expires_s: Time
    root: Keys
    release: Keys
    round: Keys


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """One model file of a release: a submodel in a precision, what it takes, and how it did before it was signed."""

    name: Name
    submodel: Submodel
    precision: Precision
    opset: Positive
    onnxruntime: Text
    parameters: Count
    inference_memory_bytes: Count
    accuracy: Share
    samples: Count
    manifest: Entries

    @property
    def size_bytes(self) -> int:
        """Of the model alone: a tokenizer is the same in all."""
        return self.manifest[0].size_bytes


class ReleaseManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A release: every export of one version of a task's model.

    ``release`` rises: a device refuses one that is older than what it has run of the task. ``groups`` are those whose
    devices may run it, or all where none is named. ``pixel_mean`` and ``pixel_std`` are those of the recipe that the
    model was trained with.
    """

    release: Positive
    fleet: Name
    groups: tuple[Name, ...] = ()
    task: Name
    version: Digest
    issued_s: Time
    expires_s: Time
    labels: Labels
    max_tokens: Positive
    pixel_mean: PixelMean = (0.5,)
    pixel_std: PixelStd = (0.5,)
    exports: Annotated[tuple[Export, ...], msgspec.Meta(min_length=1, max_length=MAX_EXPORTS)]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What a model has to show on a device before it stays: ``None`` is not looked at.

    It serves for ``seconds`` on trial. On the device's held-out examples it has at least ``least_accuracy``, loses at
    most ``most_accuracy_lost`` against the model before, and takes at most ``most_latency_ms`` an example, the median.
    """

    seconds: Seconds = 0.0
    least_accuracy: Share | None = None
    most_accuracy_lost: Share | None = None
    most_latency_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Which export one device is to run now; without an ``export`` it leaves the release for what it ran before.

    ``number`` rises: a device refuses one that is older than the newest that it has followed for the task. ``manifest``
    is the digest of the release's payload. Its blobs may also be had at ``address``, a slash, and their digest.
    """

    number: Positive
    fleet: Name
    device: Name
    group: Name
    task: Name
    release: Positive
    manifest: Digest
    export: Name | None
    expires_s: Time
    trial: Trial = Trial()
    address: Text | None = None


class ReleasedModel(msgspec.Struct, frozen=True, kw_only=True):
    """An export as a device keeps it, with what it takes to ask it."""

    release: Positive
    task: Name
    submodel: Submodel
    labels: Labels
    max_tokens: Positive
    pixel_mean: PixelMean = (0.5,)
    pixel_std: PixelStd = (0.5,)
    manifest: Entries
    onnxruntime: Text = ""


@dataclass(frozen=True, slots=True)
class Order:
    """A verified assignment, and the model that it names; none where the release is to be left."""

    assignment: Assignment
    model: ReleasedModel | None = None

    def report(self, standing: Standing, detail: str = "") -> ReleaseReport:
        """What there is to say of it without a measurement."""
        return ReleaseReport(
            release=self.assignment.release,
            task=self.assignment.task,
            healthy=standing is Standing.HEALTHY,
            detail=detail[:500],
            assignment=self.assignment.number,
            standing=standing,
        )


_Signed = TypeVar("_Signed", Root, ReleaseManifest, Assignment)
# made once, on import: msgspec crashes where two threads meet a type for the first time
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Root, ReleaseManifest, Assignment)
}
_NAMES = {Root: "root of trust", ReleaseManifest: "manifest of a release", Assignment: "assignment"}
_ROLES = {Root: Role.ROOT, ReleaseManifest: Role.RELEASE, Assignment: Role.ROUND}


def role_of(kind: type[Root | ReleaseManifest | Assignment]) -> Role:
    """Who signs it."""
    return _ROLES[kind]


def encoded(document: Root | ReleaseManifest | Assignment) -> bytes:
    """What is signed."""
    return msgspec.msgpack.encode(document)


def read(kind: type[_Signed], payload: bytes) -> _Signed:
    """What was signed; ``UntrustedError`` where it is no ``kind``."""
    try:
        document: _Signed = _decoders[kind].decode(payload)
    except (*UNDECODABLE, ValueError) as error:
        raise UntrustedError(f"what was signed is no {_NAMES[kind]}: {error}") from error
    return document


def verified(kind: type[_Signed], envelope: bytes, trusted: Keys) -> _Signed:
    """The document in ``envelope``, where enough of ``trusted`` have signed it in its role; else ``UntrustedError``."""
    return read(kind, verify(envelope, _ROLES[kind], trusted))
