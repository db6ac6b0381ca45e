"""Versions of the global model as blobs: the trained part once a version, the frozen part once ever."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge_sdk.elastic.families import Family
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from edge_sdk.transport.blob_folder import BlobFolder


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The global model after ``number`` rounds. ``digest`` names it: the SHA-256 of its trained part."""

    number: int
    digest: str
    parameters: dict[str, Array]
    blobs: tuple[BlobEntry, ...]


def save_version(
    blobs: BlobFolder, number: int, parameters: dict[str, Array], family: Family, part: TrainablePart
) -> ModelVersion:
    """Put ``parameters`` into ``blobs`` and name the result."""
    weights, frozen = split_part(parameters, family, part)
    entries = (put_tensors(blobs, Part.WEIGHTS, weights), put_tensors(blobs, Part.FROZEN, frozen))
    return ModelVersion(number, entries[0].digest, parameters, entries)


def load_version(blobs: BlobFolder, number: int, entries: Iterable[BlobEntry]) -> ModelVersion:
    """Read a version back; its arrays are copies that may be changed."""
    entries = tuple(entries)
    parameters: dict[str, Array] = {}
    for entry in entries:
        tensors = read_tensors(blobs.path_of(entry.digest).read_bytes())
        parameters |= {name: array.copy() for name, array in tensors.items()}
    return ModelVersion(number, entries[0].digest, parameters, entries)


def split_part(
    parameters: Mapping[str, Array], family: Family, part: TrainablePart
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What devices train, and what stays frozen."""
    trained = {name: array for name, array in parameters.items() if family.is_trainable(name, part)}
    return trained, {name: array for name, array in parameters.items() if name not in trained}


def put_tensors(blobs: BlobFolder, part: Part, tensors: Mapping[str, Array]) -> BlobEntry:
    """One blob of these tensors, in the wire's tensor format."""
    buffer = io.BytesIO()
    write_tensors(buffer, tensors)
    return put_bytes(blobs, part, buffer.getvalue())


def put_bytes(blobs: BlobFolder, part: Part, data: bytes) -> BlobEntry:
    """One blob of these bytes."""
    return BlobEntry(part=part, digest=blobs.put_bytes(data), size_bytes=len(data))
