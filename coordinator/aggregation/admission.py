"""Which updates are admitted, and how much each may count.

An update has to have exactly the expected table of tensors, finite values, and a norm that is not absurdly large. Its
encoding has to be sound: scales finite and not negative, indices ascending and within their parameter. A rejected
update never reaches the global model, so one hostile or broken device cannot make that infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.aggregation.tensor_file import TensorFile
from edge_sdk.elastic.slicing import Array, Slices, shapes_of
from edge_sdk.errors import ConfigurationError, TensorTableError
from edge_sdk.protocol.messages import Refusal, TrainingReport


class Rejected(Exception):  # noqa: N818 - a verdict, not an error of this program
    """An update is not admitted; the text is one line for the device's receipt."""

    def __init__(self, refusal: Refusal, text: str) -> None:
        super().__init__(refusal.because(text))
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on updates. Raises ``ConfigurationError`` for values that would not limit anything.

    ``max_norm_ratio`` bounds an update's Euclidean norm relative to that of the parameters that it changes.
    ``max_norm`` bounds the norm itself, so that a model that grows in every round never becomes infinite.
    ``max_weight``, in samples, bounds how much one update counts, whatever the device reports.
    """

    max_norm_ratio: float = 5.0
    max_norm: float = 1e12
    max_weight: float = 100_000.0

    def __post_init__(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        for name, most in {"max_norm_ratio": 1e6, "max_norm": 1e15, "max_weight": 1e12}.items():
            value = getattr(self, name)
            if not 0 < value <= most:
                raise ConfigurationError(f"admission has {name} {value}; it must be above 0 and up to {most:g}")


def admit_file(path: Path, base: Mapping[str, Array], slices: Slices, report: TrainingReport, limits: Limits) -> float:
    """Check an update and return its weight: its samples, capped.

    The file at ``path`` holds deltas of ``slices`` of the full model ``base``, in the encoding that ``report`` names.
    Raises :class:`Rejected` if it is not admitted, ``StorageError`` if it cannot be read.
    """
    try:
        file = TensorFile(path, shapes_of(slices), report.encoding)
    except TensorTableError as error:
        raise Rejected(Refusal.TABLE, str(error)) from error
    with closing(file):
        ratio_most = limits.max_norm_ratio * math.sqrt(sum(map(_squared_norm, _pieces(base, slices))))
        _check_values(file, min(ratio_most, limits.max_norm))
    return min(float(report.samples), limits.max_weight)


def _check_values(file: TensorFile, most: float) -> None:
    """Raise :class:`Rejected` if the values cannot be decoded, or if their norm exceeds ``most``."""
    if (flaw := file.flaw()) is not None:
        name, kind, text = flaw
        raise Rejected(Refusal(kind.value), f"{name}: {text}")
    norm = math.sqrt(sum(_squared_norm(values) for _, values in file.blocks()))
    if not math.isfinite(norm):
        _check_finite(file)
    if norm > most:
        raise Rejected(Refusal.NORM, f"norm {norm:.3g}; at most {most:.3g} is admitted")


def _check_finite(file: TensorFile) -> None:
    for name, values in file.blocks():
        if not np.isfinite(values).all():
            raise Rejected(Refusal.NOT_FINITE, f"{name} has values that are not finite")


def _pieces(base: Mapping[str, Array], slices: Slices) -> Iterator[Array]:
    """What ``slices`` cover of ``base``, rectangle by rectangle."""
    return (base[name][whole] for name, region in slices.items() for whole, _ in region.rectangles())


def _squared_norm(array: Array) -> float:
    """Computed in float32, so values beyond about 1e19 count as infinite; rows are summed separately for precision."""
    rows = np.atleast_1d(array)
    return float(np.einsum("...i,...i->...", rows, rows).sum(dtype=np.float64))
