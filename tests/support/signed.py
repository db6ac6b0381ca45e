"""A repository of trust turned by hand, after python-tuf's simulator: every key, version, number, date may change.

``Signers`` has the keys; what it signs is for ``DEVICE`` of ``FLEET`` unless a test says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.data import Examples
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.inference.serving import Serving
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part, Release, ReleaseReport, Standing
from edge_sdk.protocol.releases import (
    Assignment,
    Export,
    Order,
    Precision,
    ReleasedModel,
    ReleaseManifest,
    Root,
    Trial,
    encoded,
    role_of,
)
from edge_sdk.protocol.signing import Envelope, Keys, Role, opened, seal, sign

FLEET, DEVICE, GROUP, TASK = "default", "lone", "default", "task"
DAY_S = 86400.0
FOREVER_S = 9e9
NO_TRIAL = Trial()
MODEL = BlobEntry(part=Part.INFERENCE_MODEL, digest="ab" * 32, size_bytes=7)
Key = Ed25519PrivateKey


def export(name: str = "m1-int8", manifest: tuple[BlobEntry, ...] = (MODEL,), **changes: Any) -> Export:
    """A small model of full accuracy."""
    known = Export(
        name=name,
        submodel=Submodel((0,), (1,), (4,)),
        precision=Precision.INT8,
        opset=20,
        onnxruntime="1.17",
        parameters=1000,
        inference_memory_bytes=1,
        accuracy=1.0,
        samples=100,
        manifest=manifest,
    )
    return msgspec.structs.replace(known, **changes)


def keys_of(secrets: Sequence[Key], threshold: int = 1) -> Keys:
    return Keys(keys=tuple(key.public_key().public_bytes_raw() for key in secrets), threshold=threshold)


def enveloped(document: Root | ReleaseManifest | Assignment, *secrets: Key, role: Role | None = None) -> bytes:
    """``document``, signed in its role, or in another."""
    role, payload = role or role_of(type(document)), encoded(document)
    return seal(role, payload, *(sign(key, role, payload) for key in secrets))


def payload_of(envelope: bytes) -> bytes:
    return opened(envelope).payload


def write_root_file(path: Path, envelope: bytes) -> Path:
    path.write_bytes(msgspec.json.encode(msgspec.msgpack.decode(envelope, type=Envelope)))
    return path


@dataclass
class Signers:
    """One key a role, threshold one, unless a test puts others there."""

    root: list[Key] = field(default_factory=lambda: [Key.generate()])
    release: list[Key] = field(default_factory=lambda: [Key.generate()])
    round: list[Key] = field(default_factory=lambda: [Key.generate()])
    thresholds: dict[str, int] = field(default_factory=dict)
    version: int = 1
    made_s: float = field(default_factory=time.time)
    expires_s: float = FOREVER_S

    def root_document(self, **changes: Any) -> Root:
        keys = {
            name: keys_of(getattr(self, name), self.thresholds.get(name, 1)) for name in ("root", "release", "round")
        }
        known = Root(version=self.version, issued_s=self.made_s, expires_s=self.expires_s, **keys)
        return msgspec.structs.replace(known, **changes)

    def root_envelope(self, *also: Key, **changes: Any) -> bytes:
        """Signed by its own root keys, and ``also`` by those of the root before."""
        own = [key for key in self.root if key not in also]
        return enveloped(self.root_document(**changes), *also, *own)

    def manifest(self, release: int = 1, **changes: Any) -> ReleaseManifest:
        known = ReleaseManifest(
            release=release,
            fleet=FLEET,
            task=TASK,
            version="cd" * 32,
            issued_s=self.made_s,
            expires_s=FOREVER_S,
            labels=("no", "yes"),
            max_tokens=16,
            exports=(export(),),
        )
        return msgspec.structs.replace(known, **changes)

    def assignment(self, manifest: ReleaseManifest, **changes: Any) -> Assignment:
        """Of its first export, with the release's number."""
        known = Assignment(
            number=manifest.release,
            fleet=FLEET,
            device=DEVICE,
            group=GROUP,
            task=manifest.task,
            release=manifest.release,
            manifest=digest_of(encoded(manifest)),
            export=manifest.exports[0].name,
            expires_s=FOREVER_S,
        )
        return msgspec.structs.replace(known, **changes)

    def message(
        self,
        manifest: ReleaseManifest,
        *,
        roots: Sequence[bytes] = (),
        signers: Sequence[Key] | None = None,
        rounds: Sequence[Key] | None = None,
        **assignment: Any,
    ) -> Release:
        """A whole message; ``signers`` and ``rounds`` sign in place of the release and round keys."""
        return Release(
            envelope=enveloped(self.assignment(manifest, **assignment), *(self.round if rounds is None else rounds)),
            manifest=enveloped(manifest, *(self.release if signers is None else signers)),
            roots=tuple(roots),
        )


def order_of(model: ReleasedModel, trial: Trial = NO_TRIAL, number: int | None = None) -> Order:
    """To run ``model``, under its own number or another."""
    assignment = Assignment(
        number=number or model.release,
        fleet=FLEET,
        device=DEVICE,
        group=GROUP,
        task=model.task,
        release=model.release,
        manifest="cd" * 32,
        export="m1-int8",
        expires_s=FOREVER_S,
        trial=trial,
    )
    return Order(assignment, model)


def installed(
    serving: Serving, order: Order, files: Mapping[Part, Path], held_out: Examples | None = None
) -> ReleaseReport:
    """Install, and end the trial at once; the last report."""
    assert order.model is not None
    report = serving.install(order, order.model, files, held_out)
    return serving.end_trial() if report.standing is Standing.TRYING else report
