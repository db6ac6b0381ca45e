"""Versions of the global model as blobs: trained parameters once per version, frozen ones once per task."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from coordinator.models.permutation import LayerOrder
from edge_sdk.decoding import UNDECODABLE
from edge_sdk.disk import disk_errors
from edge_sdk.elastic.families import Family
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.errors import BlobCorruptError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from edge_sdk.transport.blob_folder import BlobFolder


class Ordering(msgspec.Struct, frozen=True):
    """What version 0 was permuted by: for each layer the old indices in their new order; and the layers by salience."""

    heads: tuple[tuple[int, ...], ...]
    ffn: tuple[tuple[int, ...], ...]
    layer_ranking: tuple[int, ...]

    @classmethod
    def of(cls, orders: Iterable[LayerOrder], layer_ranking: tuple[int, ...]) -> Ordering:
        """The ordering from arrays."""
        pairs = [(tuple(order.heads.tolist()), tuple(order.ffn.tolist())) for order in orders]
        heads, ffn = zip(*pairs, strict=True)
        return cls(heads, ffn, layer_ranking)

    def orders(self) -> tuple[LayerOrder, ...]:
        """The ordering as arrays."""
        return tuple(LayerOrder.of(heads, ffn) for heads, ffn in zip(self.heads, self.ffn, strict=True))


_orderings = msgspec.msgpack.Decoder(Ordering)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The global model after ``number`` rounds. ``digest`` names it: the SHA-256 of its trained part.

    ``moments`` are the server optimizer's, by name; ``ordering`` is version 0's.
    """

    number: int
    digest: str
    parameters: dict[str, Array]
    ordering: Ordering
    blobs: tuple[BlobEntry, ...]
    moments: Mapping[str, Array] = field(default_factory=dict)


def save_version(
    blobs: BlobFolder,
    number: int,
    parameters: dict[str, Array],
    ordering: Ordering,
    family: Family,
    part: TrainablePart,
    moments: Mapping[str, Array] | None = None,
) -> ModelVersion:
    """Put ``parameters``, ``ordering`` and ``moments`` into ``blobs`` and name the result."""
    weights, frozen = split_part(parameters, family, part)
    entries = [
        put_tensors(blobs, Part.WEIGHTS, weights),
        put_tensors(blobs, Part.FROZEN, frozen),
        put_bytes(blobs, Part.ORDERING, msgspec.msgpack.encode(ordering)),
    ]
    if moments:
        entries.append(put_tensors(blobs, Part.MOMENTS, moments))
    return ModelVersion(number, entries[0].digest, parameters, ordering, tuple(entries), moments or {})


def load_version(blobs: BlobFolder, number: int, entries: Iterable[BlobEntry]) -> ModelVersion:
    """Read a version back; its arrays are copies that may be changed.

    Raises ``BlobCorruptError`` for a damaged blob, and ``StorageError`` where one cannot be read.
    """
    entries = tuple(entries)
    digests = {entry.part: entry.digest for entry in entries}
    tensors = {
        part: _read(blobs, digests[part]) for part in (Part.WEIGHTS, Part.FROZEN, Part.MOMENTS) if part in digests
    }
    ordering = read_ordering(blobs, digests[Part.ORDERING])
    parameters = tensors[Part.WEIGHTS] | tensors[Part.FROZEN]
    return ModelVersion(number, digests[Part.WEIGHTS], parameters, ordering, entries, tensors.get(Part.MOMENTS, {}))


def read_ordering(blobs: BlobFolder, digest: str) -> Ordering:
    """What a version names as its ordering; it also says how many heads and neurons each layer has.

    Raises ``BlobCorruptError`` for a damaged one, and ``StorageError`` where it cannot be read.
    """
    try:
        return _orderings.decode(_bytes_of(blobs, digest))
    except UNDECODABLE as error:
        raise BlobCorruptError(f"blob {digest[:16]}… is no ordering: copy it from a backup") from error


def _read(blobs: BlobFolder, digest: str) -> dict[str, Array]:
    return {name: array.copy() for name, array in read_tensors(_bytes_of(blobs, digest)).items()}


def _bytes_of(blobs: BlobFolder, digest: str) -> bytes:
    """A blob's bytes, which have its digest."""
    path = blobs.path_of(digest)
    with disk_errors(path):
        data = path.read_bytes()
    if digest_of(data) != digest:
        raise BlobCorruptError(f"blob {digest[:16]}… is damaged: copy it from a backup")
    return data


def split_part(
    parameters: Mapping[str, Array], family: Family, part: TrainablePart
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The parameters that devices train, and those that stay frozen."""
    trained = {name: array for name, array in parameters.items() if family.is_trainable(name, part)}
    return trained, {name: array for name, array in parameters.items() if name not in trained}


def put_tensors(blobs: BlobFolder, part: Part, tensors: Mapping[str, Array]) -> BlobEntry:
    """Store these tensors as one blob, in the wire's tensor format."""
    buffer = io.BytesIO()
    write_tensors(buffer, tensors)
    return put_bytes(blobs, part, buffer.getvalue())


def put_bytes(blobs: BlobFolder, part: Part, data: bytes) -> BlobEntry:
    """Store these bytes as one blob."""
    return BlobEntry(part=part, digest=blobs.put_bytes(data), size_bytes=len(data))
