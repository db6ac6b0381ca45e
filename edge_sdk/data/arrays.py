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
_MOST_UNPACKED_BYTES, _MOST_RATIO = 64 << 20, 200  # of what is not nearly the same number everywhere
_X = "x.npy"
_LOCAL_HEAD = struct.Struct("<4s5H3I2H")  # of a member in a ZIP archive, before its name
_HEADS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BLOCK_BYTES = 1 << 20


def read_npz(path: Path, scratch: Path | None = None) -> ArrayExamples:
    """Arrays of windows or of images, on the disk of ``scratch`` where it is given, row by row, and else in memory.

    Raises ``DataFormatError`` where the file holds neither, or unpacks without measure.
    """
    with array_errors(path, "save it with numpy.savez"), _archive(path) as archive:
        values = None if scratch is None else _spooled(archive, scratch)
        return array_examples(str(path), _array(path, "x") if values is None else values, _array(path, "y"))


def map_npz(path: Path) -> ArrayExamples:
    """What :func:`write_npz` wrote, without reading it: the system can take back what it takes of memory.

    The file must stay as it is for as long as that is used. Raises as :func:`read_npz`.
    """
    with array_errors(path, "it was changed: write it again"), _archive(path) as archive:
        return array_examples(str(path), _mapped(path, archive), _array(path, "y"))


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """An .npz file with x and y: np.load would also take a file of another format."""
    with zipfile.ZipFile(path) as archive:
        lacking = [name for name in ("x", "y") if f"{name}.npy" not in archive.namelist()]
        if lacking:
            raise DataFormatError(f"{path} lacks the array {', '.join(lacking)}; it needs x, y")
        unpacked_bytes = sum(member.file_size for member in archive.infolist())
        if unpacked_bytes > max(_MOST_UNPACKED_BYTES, _MOST_RATIO * path.stat().st_size):
            raise DataFormatError(
                f"{path} unpacks to {unpacked_bytes} bytes, which are no examples: save fewer, as they are"
            )
        yield archive


def _spooled(archive: zipfile.ZipFile, scratch: Path) -> NDArray[Any] | None:
    """The array x, one row at a time in memory; ``None`` where it has no rows that lie one after the other."""
    with archive.open(_X) as member:
        (rows, *shape), in_columns, kind = _head(member)
        if in_columns or kind.hasobject or min(rows, *shape, kind.itemsize) < 1:
            return None
        row_bytes = kind.itemsize * math.prod(shape)
        coming = (np.frombuffer(_exactly(member, row_bytes), kind).reshape(shape) for _ in range(rows))
        return mapped(map(_as_single, coming) if kind.kind == "f" else coming, scratch)


def _mapped(path: Path, archive: zipfile.ZipFile) -> NDArray[Any]:
    """The array x where it lies in the file; ``ValueError`` where it is not there as it is."""
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
    """Of an array in NumPy's format: its shape, whether it lies column by column, and its type."""
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
    """Floats in single precision: what is too large for it becomes infinite, what is masked is no number."""
    with np.errstate(over="ignore"):
        return np.ma.filled(values, np.nan).astype(np.float32, copy=False)


def _is_finite(values: NDArray[Any]) -> bool:
    """Some rows at a time: neither all of a mapped array nor the answer for all of it is ever in memory."""
    rows = max(1, _BLOCK_BYTES // values[0].nbytes)
    for start in range(0, len(values), rows):
        if not np.isfinite(values[start : start + rows]).all():
            return False
        let_go(values)
    return True


def _array(path: Path, name: str) -> NDArray[Any]:
    with np.load(path) as arrays:
        values = arrays[name]
    if not isinstance(values, np.ndarray):  # a member that is none comes as its bytes
        raise ValueError(f"{name} is no array")  # noqa: TRY004 - as what NumPy raises
    return values
