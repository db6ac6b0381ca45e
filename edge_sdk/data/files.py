"""Read examples from files, and write them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from edge_sdk.data.arrays import map_npz, read_npz, write_npz
from edge_sdk.data.examples import ArrayExamples, Examples, TextExamples
from edge_sdk.data.images import IMAGE_SIZE, read_image_folder
from edge_sdk.data.rows import read_csv, read_jsonl, write_jsonl
from edge_sdk.data.tables import read_parquet
from edge_sdk.disk import disk_errors
from edge_sdk.errors import DataFormatError

_READERS: dict[str, Callable[[Path, int, Path | None], Examples]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".npz": lambda path, _, scratch: read_npz(path, scratch),
    ".parquet": read_parquet,
}
_KINDS = ".csv, .jsonl, .parquet or .npz file, or a folder of pictures"


def read_examples(path: Path, image_size: int = IMAGE_SIZE, scratch: Path | None = None) -> Examples:
    """Read a CSV, JSONL, Parquet or .npz file, or a folder of pictures, as the table in :mod:`edge_sdk.data` says.

    CSV and JSONL are UTF-8. In an .npz file, ``x`` has the shape of ``ArrayExamples.values`` (windows of any float
    type, or images), and ``y`` strings or integers. Pictures become squares of ``image_size`` pixels a side. With
    ``scratch``, a folder, pictures and arrays are kept on its disk, not in memory.
    Raises ``DataFormatError`` if the file is missing, is of another kind, lacks a column, has no row, or has a row that
    is not an example (named by its number, counted from 1 without a CSV's header); and ``ConfigurationError`` if a
    library that the file needs is not installed.
    """
    try:
        if path.is_dir():
            return read_image_folder(path, image_size, scratch)
        return _reader_of(path)(path, image_size, scratch)
    except FileNotFoundError as error:
        raise DataFormatError(f"{path} does not exist; name a {_KINDS}") from error
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path} cannot be read ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataFormatError(
            f"{path} is not CSV ({error}); is a quotation mark never closed, or a text too long?"
        ) from error
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read ({error.strerror or error})") from error


def map_examples(path: Path) -> Examples:
    """Read what :func:`write_examples` wrote; arrays are mapped, so the file must not change while they are in use.

    Raises as :func:`read_examples`.
    """
    return map_npz(path) if path.suffix == ".npz" else read_examples(path)


def read_texts(path: Path) -> TextExamples:
    """As :func:`read_examples`; also raises ``DataFormatError`` if the file holds anything but labelled texts."""
    examples = read_examples(path)
    if not isinstance(examples, TextExamples):
        raise DataFormatError(f"{path} holds {type(examples).__name__}, not labelled texts; it needs text, label")
    return examples


def write_examples(path: Path, examples: Examples) -> Path:
    """Write ``examples`` for :func:`read_examples` to ``path`` with the suffix of their format; the path written.

    The agent passes its training part to the training process this way. Raises ``DiskFullError`` or ``StorageError``.
    """
    path = path.with_suffix(".npz" if isinstance(examples, ArrayExamples) else ".jsonl")
    partial = path.with_name(f"partial-{path.name}")  # a full disk leaves what was there before
    with disk_errors(path):
        try:
            if isinstance(examples, ArrayExamples):
                write_npz(partial, examples)
            else:
                write_jsonl(partial, examples)
            return partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _reader_of(path: Path) -> Callable[[Path, int, Path | None], Examples]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataFormatError(f"{path} is not a {_KINDS}; convert it to one of them")
    return reader
