"""Examples that are arrays: .npz files, and arrays in memory."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.examples import ArrayExamples
from edge_sdk.data.mapped import let_go, mapped
from edge_sdk.errors import DataFormatError

_DAMAGE = (ValueError, OverflowError, EOFError, SyntaxError, MemoryError, RuntimeError, tokenize.TokenError, zlib.error)
_MAX_UNPACKED_BYTES, _MAX_RATIO = 64 << 20, 200  # real data does not compress by more; a zip bomb does
_X = "x.npy"
_LOCAL_HEAD = struct.Struct("<4s5H3I2H")  # of a member in a ZIP archive, before its name
_HEADS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BLOCK_BYTES = 1 << 20


def read_npz(path: Path, scratch: Path | None = None) -> ArrayExamples:
    """The windows or images in an .npz file; with ``scratch``, a folder, they are spooled to its disk row by row.

    Raises ``DataFormatError`` if the file holds neither, or if it is a zip bomb.
    """
    with array_errors(path, "save it with numpy.savez"), _archive(path) as archive:
        values = None if scratch is None else _spooled(archive, scratch)
        return array_examples(str(path), _array(path, "x") if values is None else values, _array(path, "y"))


def map_npz(path: Path) -> ArrayExamples:
    """Map what :func:`write_npz` wrote into memory instead of reading it, so that the system can reclaim its pages.

    The file must not change while the result is in use. Raises as :func:`read_npz`.
    """
    with array_errors(path, "it was changed: write it again"), _archive(path) as archive:
        return array_examples(str(path), _mapped(path, archive), _array(path, "y"))


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz file that has x and y; unlike ``np.load``, accept no other format."""
    with zipfile.ZipFile(path) as archive:
        lacking = [name for name in ("x", "y") if f"{name}.npy" not in archive.namelist()]
        if lacking:
            raise DataFormatError(f"{path} lacks the array {', '.join(lacking)}; it needs x, y")
        unpacked_bytes = sum(member.file_size for member in archive.infolist())
        if unpacked_bytes > max(_MAX_UNPACKED_BYTES, _MAX_RATIO * path.stat().st_size):
            raise DataFormatError(
                f"{path} unpacks to {unpacked_bytes} bytes, too many for its size: save fewer, without compression"
            )
        yield archive


def _spooled(archive: zipfile.ZipFile, scratch: Path) -> NDArray[Any] | None:
    """The array x, with one row at a time in memory; ``None`` if it is empty, of objects, or not in C order."""
    with archive.open(_X) as member:
        (rows, *shape), in_columns, kind = _head(member)
        if in_columns or kind.hasobject or min(rows, *shape, kind.itemsize) < 1:
            return None
        row_bytes = kind.itemsize * math.prod(shape)
        coming = (np.frombuffer(_exactly(member, row_bytes), kind).reshape(shape) for _ in range(rows))
        return mapped(map(_as_single, coming) if kind.kind == "f" else coming, scratch)


def _mapped(path: Path, archive: zipfile.ZipFile) -> NDArray[Any]:
    """The array x, mapped where it lies in the file; ``ValueError`` if it is compressed or not contiguous."""
    found = archive.getinfo(_X)
    with archive.open(found) as member:
        shape, in_columns, kind = _head(member)
        head_bytes = member.tell()
    if found.compress_type != zipfile.ZIP_STORED or in_columns or kind.hasobject:
        raise ValueError("x is not stored as it is")
    with path.open("rb") as file:
        file.seek(found.header_offset)
        *_, name_bytes, extra_bytes = _LOCAL_HEAD.unpack(file.read(_LOCAL_HEAD.size))
    start = found.header_offset + _LOCAL_HEAD.size + name_bytes + extra_bytes + head_bytes
    return np.memmap(path, kind, "r", start, shape)


def _head(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The header of an array in NumPy's format: its shape, whether it is in Fortran order, and its type."""
    version = np.lib.format.read_magic(member)
    if version not in _HEADS:
        raise ValueError(f"x is in version {version} of NumPy's format")
    return _HEADS[version](member)


def _exactly(member: IO[bytes], size_bytes: int) -> bytes:
    data = member.read(size_bytes)
    if len(data) != size_bytes:
        raise EOFError("x ends too soon")
    return data


@contextmanager
def array_errors(path: Path, advice: str) -> Iterator[None]:
    """Turn what NumPy raises for a damaged or foreign file into ``DataFormatError`` with ``advice``."""
    try:
        yield
    except (zipfile.BadZipFile, *_DAMAGE) as error:
        raise DataFormatError(f"{path} cannot be read ({error}); {advice}") from error


def write_npz(path: Path, examples: ArrayExamples) -> None:
    """Write ``examples`` for :func:`read_npz`."""
    np.savez(path, x=examples.values, y=np.array(examples.labels))


def array_examples(place: str, values: NDArray[Any], labels: NDArray[Any]) -> ArrayExamples:
    """Examples of windows or images with their labels; ``DataFormatError`` names ``place`` if they are neither.

    >>> array_examples("sensor", np.zeros((2, 50, 3)), np.array(["rest", "walk"])).labels
    ('rest', 'walk')
    >>> array_examples("sensor", np.zeros((2, 50)), np.array([0, 1]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    edge_sdk.errors.DataFormatError: sensor has an x of float64 (2, 50); it needs finite floats ...
    """
    if labels.dtype == object and all(isinstance(label, str) for label in labels.flat):  # a column of pandas
        labels = labels.astype(str)
    if values.ndim and (labels.shape != values.shape[:1] or labels.dtype.kind not in "Uiu"):
        raise DataFormatError(
            f"{place} has a y of {labels.dtype} {labels.shape}; it needs {len(values)} strings or integers"
        )
    names = tuple(labels.reshape(-1).tolist())
    if values.ndim == 4 and values.dtype == np.uint8 and values.size:
        return ArrayExamples(values.astype(np.uint8, copy=False), names)
    if values.ndim == 3 and values.dtype.kind == "f" and values.size and _is_finite(windows := _as_single(values)):
        return ArrayExamples(windows, names)
    raise DataFormatError(
        f"{place} has an x of {values.dtype} {values.shape}; it needs finite floats (examples, steps, channels), in "
        "single precision too, or uint8 (examples, height, width, channels), and at least one"
    )


def _as_single(values: NDArray[Any]) -> NDArray[np.float32]:
    """Floats in single precision; values too large for it become infinite, masked ones NaN."""
    with np.errstate(over="ignore"):
        return np.ma.filled(values, np.nan).astype(np.float32, copy=False)


def _is_finite(values: NDArray[Any]) -> bool:
    """Whether all values are finite; checked in blocks of rows, so that a mapped array is never wholly in memory."""
    rows = max(1, _BLOCK_BYTES // values[0].nbytes)
    for start in range(0, len(values), rows):
        if not np.isfinite(values[start : start + rows]).all():
            return False
        let_go(values)
    return True


def _array(path: Path, name: str) -> NDArray[Any]:
    with np.load(path) as arrays:
        values = arrays[name]
    if not isinstance(values, np.ndarray):  # np.load returns the bytes of a member that is no array
        raise ValueError(f"{name} is no array")  # noqa: TRY004 - as what NumPy raises
    return values
