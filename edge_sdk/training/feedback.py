"""Error feedback: what an update's encoding loses is kept, and added to the device's next update of the task.

In the long run, lossy updates then add up to what lossless ones would (EF-SGD, arXiv 1901.09847, algorithm 1):

    p = Δ + e        Δ is what this round's training changed, e the residual of the round before
    send  C(p)       C is the offer's encoding
    keep  e = p - C(p)

C(p) is computed as the coordinator decodes it, so e is exactly what did not arrive. If the submodel differs from the
last round's, e is added only where both hold the same entries of the full model. The rest is dropped: other devices
train it now, the model will have moved on by the time this device holds it again, and keeping it all would take the
disk space of the full model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_sdk.decoding import UNDECODABLE
from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import Array, Slices, full_shapes, overlaps, shapes_of, slices_of
from edge_sdk.elastic.submodel import Architecture, Submodel
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.encodings import encode, take_away
from edge_sdk.protocol.tensors import Tensors
from edge_sdk.training.files import read_sealed, write_whole
from edge_sdk.training.job import TrainingJob

_OWNER = ":owner"


class _Owner(msgspec.Struct, frozen=True):
    """The submodel whose entries a residual has."""

    architecture: Architecture
    submodel: Submodel


def write_update(job: TrainingJob, deltas: Mapping[str, Array]) -> None:
    """Write ``deltas``, plus the job's residual, as its update, and what the encoding loses as its new residual.

    The arrays are changed in place. Raises ``DiskFullError`` or another ``StorageError``.
    """
    if job.residual:
        _add_residual(job, deltas)
    tensors = encode(deltas, job.encoding, job.rounding_seed)
    write_whole(Path(job.update), tensors)
    if job.new_residual and job.encoding.leaves_residual:
        take_away(deltas, tensors, job.encoding)
        owner = _packed(_Owner(job.architecture, job.submodel))
        write_whole(Path(job.new_residual), {_OWNER: owner, **deltas}, sealed=True)


def _add_residual(job: TrainingJob, deltas: Mapping[str, Array]) -> None:
    """Add the job's residual to ``deltas`` in place, unless the file is damaged or of another model."""
    found = read_sealed(Path(job.residual))
    if found is None:
        return
    residual, _ = found
    owner = _unpacked(residual.pop(_OWNER, np.zeros(0, np.int8)))
    if owner is None or owner.architecture != job.architecture:
        return
    try:
        theirs, ours = (
            _slices(submodel, job.architecture, tensors)
            for submodel, tensors in ((owner.submodel, residual), (job.submodel, deltas))
        )
    except ConfigurationError:  # the owner is damaged: its submodel does not fit the architecture
        return
    if shapes_of(theirs) != {name: values.shape for name, values in residual.items()}:
        return
    for name in theirs.keys() & ours.keys():
        for there, here in overlaps(theirs[name], ours[name]):
            deltas[name][here] += residual[name][there]


def _slices(submodel: Submodel, architecture: Architecture, tensors: Tensors | Mapping[str, Array]) -> Slices:
    family = family_of(architecture.family)
    shapes = full_shapes({name: values.shape for name, values in tensors.items()}, architecture, family)
    return slices_of(submodel, architecture, family, shapes)


def _packed(owner: _Owner) -> NDArray[np.int8]:
    return np.frombuffer(msgspec.msgpack.encode(owner), np.int8)


def _unpacked(data: NDArray[np.int8]) -> _Owner | None:
    try:
        return msgspec.msgpack.decode(data.tobytes(), type=_Owner)
    except UNDECODABLE:
        return None
