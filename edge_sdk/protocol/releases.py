"""The signed documents about models for inference: whose keys count, what a release has, and what a device is to run.

A device runs only exports of a release that the release keys have signed, and of these the one that an assignment,
signed by the round key, names. So a thief of the round key can choose among releases, but cannot ship a model.
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
    """The type of an export's weights; int8 ones have a scale per channel."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """Whose keys count for what, and until when. The next root has the next version; root keys of both sign it."""

    version: Positive
    issued_s: Time
    expires_s: Time
    root: Keys
    release: Keys
    round: Keys


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """One model file of a release: a submodel in a precision, what it needs, and its accuracy before it was signed."""

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
        """The size of the model alone, since all exports have the same tokenizer."""
        return self.manifest[0].size_bytes


class ReleaseManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A release: every export of one version of a task's model.

    ``release`` rises: a device refuses one that is older than what it has run of the task. The devices of ``groups``
    may run it, or all devices if none is named. ``pixel_mean`` and ``pixel_std`` are those that the model was trained
    with.
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
    """The trial that a model has to pass on a device before it stays; ``None`` is no condition.

    The model serves for ``seconds`` on trial. On the device's held-out examples it has to reach ``min_accuracy``, may
    lose at most ``max_accuracy_loss`` against the model before, and may take at most ``max_latency_ms`` per example,
    in the median.
    """

    seconds: Seconds = 0.0
    min_accuracy: Share | None = None
    max_accuracy_loss: Share | None = None
    max_latency_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Which export one device is to run now. Without an ``export``, it goes back to what it ran before the release.

    ``number`` rises: a device refuses one that is older than the newest that it has followed for the task. ``manifest``
    is the digest of the release's payload. Its blobs may also be fetched from ``address/<digest>``.
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
    """An export as a device stores it, with what is needed to run it."""

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
    """A verified assignment and the model that it names; no model if the release is to be left."""

    assignment: Assignment
    model: ReleasedModel | None = None

    def report(self, standing: Standing, detail: str = "") -> ReleaseReport:
        """A report on this order without measurements."""
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
    """The role whose keys sign this kind of document."""
    return _ROLES[kind]


def encoded(document: Root | ReleaseManifest | Assignment) -> bytes:
    """The payload to sign."""
    return msgspec.msgpack.encode(document)


def read(kind: type[_Signed], payload: bytes) -> _Signed:
    """The document in a payload; ``UntrustedError`` if it is no ``kind``."""
    try:
        document: _Signed = _decoders[kind].decode(payload)
    except (*UNDECODABLE, ValueError) as error:
        raise UntrustedError(f"what was signed is no {_NAMES[kind]}: {error}") from error
    return document


def verified(kind: type[_Signed], envelope: bytes, trusted: Keys) -> _Signed:
    """The document in ``envelope``, if enough of the keys ``trusted`` have signed it in its role.

    Raises ``UntrustedError`` otherwise.
    """
    return read(kind, verify(envelope, role_of(kind), trusted))
