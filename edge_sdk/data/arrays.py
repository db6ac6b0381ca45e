"""Examples that are arrays: .npz files, and arrays in memory."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.examples import ArrayExamples
from edge_sdk.errors import DataFormatError

_DAMAGE = (ValueError, OverflowError, EOFError, SyntaxError, MemoryError, RuntimeError, tokenize.TokenError, zlib.error)
_MOST_UNPACKED_BYTES, _MOST_RATIO = 64 << 20, 200  # of what is not nearly the same number everywhere


def read_npz(path: Path) -> ArrayExamples:
    """Arrays of windows or of images; ``DataFormatError`` where the file holds neither, or unpacks without measure."""
    with array_errors(path, "save it with numpy.savez"):
        with zipfile.ZipFile(path) as file:  # np.load would also take a file of another format
            names = {name.removesuffix(".npy") for name in file.namelist()}
            unpacked_bytes = sum(member.file_size for member in file.infolist())
        if not {"x", "y"} <= names:
            raise DataFormatError(f"{path} lacks the array {', '.join(sorted({'x', 'y'} - names))}; it needs x, y")
        if unpacked_bytes > max(_MOST_UNPACKED_BYTES, _MOST_RATIO * path.stat().st_size):
            raise DataFormatError(
                f"{path} unpacks to {unpacked_bytes} bytes, which are no examples: save fewer, as they are"
            )
        with np.load(path) as arrays:
            return array_examples(str(path), _array(arrays, "x"), _array(arrays, "y"))


@contextmanager
def array_errors(path: Path, advice: str) -> Iterator[None]:
    """What NumPy raises for a file that is damaged or not its own, as ``DataFormatError`` with ``advice``."""
    try:
        yield
    except (zipfile.BadZipFile, *_DAMAGE) as error:
        raise DataFormatError(f"{path} cannot be read ({error}); {advice}") from error


def write_npz(path: Path, examples: ArrayExamples) -> None:
    """Write ``examples`` for :func:`read_npz`."""
    np.savez(path, x=examples.values, y=np.array(examples.labels))


def array_examples(place: str, values: NDArray[Any], labels: NDArray[Any]) -> ArrayExamples:
    """Windows or images, and their labels; ``DataFormatError`` names ``place`` where they are neither.

    >>> array_examples("sensor", np.zeros((2, 50, 3)), np.array(["rest", "walk"])).labels
    ('rest', 'walk')
    >>> array_examples("sensor", np.zeros((2, 50)), np.array([0, 1]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    edge_sdk.errors.DataFormatError: sensor has an x of float64 (2, 50); it needs finite floats ...
    """
    if labels.shape != values.shape[:1] or labels.dtype.kind not in "Uiu":
        raise DataFormatError(
            f"{place} has a y of {labels.dtype} {labels.shape}; it needs {len(values)} strings or integers"
        )
    names = tuple(labels.tolist())
    if values.ndim == 4 and values.dtype == np.uint8 and values.size:
        return ArrayExamples(values.astype(np.uint8, copy=False), names)
    if values.ndim == 3 and values.dtype.kind == "f" and values.size and np.isfinite(values).all():
        return ArrayExamples(values.astype(np.float32, copy=False), names)
    raise DataFormatError(
        f"{place} has an x of {values.dtype} {values.shape}; it needs finite floats (examples, steps, channels) "
        "or uint8 (examples, height, width, channels), and at least one"
    )


def _array(arrays: Mapping[str, Any], name: str) -> NDArray[Any]:
    values = arrays[name]
    if not isinstance(values, np.ndarray):  # a member that is none comes as its bytes
        raise ValueError(f"{name} is no array")  # noqa: TRY004 - as what NumPy raises
    return values
