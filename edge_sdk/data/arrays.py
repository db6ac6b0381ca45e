"""Examples that are arrays: .npz files, and arrays in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.examples import ArrayExamples
from edge_sdk.errors import DataFormatError


def read_npz(path: Path) -> ArrayExamples:
    """Arrays of windows or of images; ``DataFormatError`` where the file holds neither."""
    try:
        with zipfile.ZipFile(path) as file:  # np.load would also take a file of another format
            names = {name.removesuffix(".npy") for name in file.namelist()}
        if not {"x", "y"} <= names:
            raise DataFormatError(f"{path} lacks the array {', '.join(sorted({'x', 'y'} - names))}; it needs x, y")
        with np.load(path) as arrays:
            return array_examples(str(path), arrays["x"], arrays["y"])
    except (zipfile.BadZipFile, ValueError) as error:
        raise DataFormatError(f"{path} cannot be read ({error}); save it with numpy.savez") from error


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
