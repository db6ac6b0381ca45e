"""Error feedback: what an update's encoding loses is kept, and added to the device's next update of the task.

So a lossy stream of updates says in the long run what lossless ones would (EF-SGD, arXiv 1901.09847, algorithm 1):

    p = Δ + e        Δ what this round's training changed, e the residual of the round before
    send  C(p)       as the offer's encoding says
    keep  e = p - C(p)

C(p) is computed as the coordinator decodes it, so e lacks nothing that did not arrive. Where the submodel is another
than before, e is added where both hold the same entries of the full model. What lies outside goes: others train that
now, by the time the device holds it again the model has moved on, and to keep it all would take the disk of the full
model.
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
from edge_sdk.training.files import read_whole, write_whole
from edge_sdk.training.job import TrainingJob

_OWNER = ":owner"


class _Owner(msgspec.Struct, frozen=True):
    """Whose entries a residual is of."""

    architecture: Architecture
    submodel: Submodel


def write_update(job: TrainingJob, deltas: Mapping[str, Array]) -> None:
    """Write ``deltas`` to the job's update in its encoding, and what that loses to its new residual.

    The arrays change. Raises ``DiskFullError`` or another ``StorageError``.
    """
    if job.residual:
        _add_residual(job, deltas)
    tensors = encode(deltas, job.encoding, job.rounding_seed)
    write_whole(Path(job.update), tensors)
    if job.new_residual and job.encoding.leaves_residual:
        take_away(deltas, tensors, job.encoding)
        write_whole(Path(job.new_residual), {_OWNER: _packed(_Owner(job.architecture, job.submodel)), **deltas})


def _add_residual(job: TrainingJob, deltas: Mapping[str, Array]) -> None:
    """Nothing, where the file is not whole or of another model."""
    found = read_whole(Path(job.residual))
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
    except ConfigurationError:  # a damaged owner's submodel is none
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
