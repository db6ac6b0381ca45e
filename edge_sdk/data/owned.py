"""What an application may hand in as its examples, and how each kind is read, now and again later.

a path                    CSV, JSONL, Parquet, .npz or a folder of pictures; read again once it has changed
a table                   a pandas DataFrame, a Hugging Face Dataset, a pyarrow Table
(x, y)                    numpy arrays of windows or of images, and their labels
a type of examples        those of :mod:`edge_sdk.data`
an iterable               of (text, label), (tokens, tags), (array, label), (picture, label), texts, or rows as
                          mappings; read from its beginning each time, so it may grow
an iterator, a generator  the same, read once; what it yields is stored, see :mod:`edge_sdk.data.store`
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from edge_sdk.data.arrays import array_examples
from edge_sdk.data.examples import ArrayExamples, Examples
from edge_sdk.data.files import read_examples
from edge_sdk.data.images import IMAGE_SIZE, image_files
from edge_sdk.data.rows import Row, examples_of_rows, rows_of
from edge_sdk.data.tables import as_table, examples_of_table
from edge_sdk.errors import DataFormatError

Owned: TypeAlias = Any
"""Anything in the table above; a precise type would have to name types of libraries that may not be installed."""


@dataclass(frozen=True, slots=True)
class Source:
    """How to read what an application owns.

    ``read`` returns all examples that there are now, ``None`` if there is none yet. ``version`` returns a value that
    compares equal as long as ``read`` would return the same, or ``None`` if that cannot be known. ``coming`` yields
    items that can be read only once; :func:`one_example` converts each.
    """

    read: Callable[[], Examples | None]
    version: Callable[[], object] = lambda: None
    coming: Iterator[object] | None = None


def source_of(owned: Owned, image_size: int = IMAGE_SIZE, scratch: Path | None = None) -> Source:
    """A source for ``owned``; ``DataFormatError`` if it is not in the table above.

    With ``scratch``, a folder, pictures are kept on its disk, not in memory.

    >>> mail = [("cheap pills", "spam")]
    >>> source = source_of(mail)
    >>> mail.append(("see you at noon", "ham"))
    >>> source.read()
    TextExamples(texts=('cheap pills', 'see you at noon'), labels=('spam', 'ham'))
    """
    if isinstance(owned, ArrayExamples):  # of any float type, as (x, y)
        return Source(lambda: array_examples("the ArrayExamples", owned.values, np.asarray(owned.labels)), lambda: 0)
    if isinstance(owned, Examples):
        return Source(lambda: _checked(owned), lambda: 0)
    if isinstance(owned, str | Path):
        path = Path(owned).absolute()  # it is read again later, when the current folder may be another
        return Source(lambda: read_examples(path, image_size, scratch), lambda: _changed(path))
    place, table = f"the {type(owned).__name__}", as_table(owned)
    if table is not None:
        has_version = table.is_fixed and hasattr(owned, "__len__")
        return Source(
            lambda: examples_of_table(place, table, image_size=image_size, scratch=scratch),
            lambda: len(owned) if has_version else None,
        )
    if isinstance(owned, tuple) and len(owned) == 2 and isinstance(owned[0], np.ndarray):
        return Source(lambda: array_examples("(x, y)", owned[0], np.asarray(owned[1])), lambda: 0)
    return _source_of_items(place, owned, image_size, scratch)


def one_example(given: object, image_size: int = IMAGE_SIZE) -> Examples:
    """An item of an iterable as examples, of which there is one; ``DataFormatError`` if it is no example.

    >>> one_example(("see you at noon", "ham"))
    TextExamples(texts=('see you at noon',), labels=('ham',))
    """
    examples = examples_of_rows("the example", [_as_row(given)], image_size=image_size)
    return cast("Examples", examples)  # there is a row, so it is not None


def _checked(owned: Examples) -> Examples | None:
    """Examples of a text type, checked as a list of them is: an application may have put anything into its fields."""
    place, counts = f"the {type(owned).__name__}", [len(column) for column in owned.columns()]
    if len({*counts}) > 1:
        raise DataFormatError(
            f"{place} has {' and '.join(map(str, counts))} entries in its fields; give as many in each"
        )
    return examples_of_rows(place, rows_of(owned))


def _source_of_items(place: str, owned: Owned, image_size: int, scratch: Path | None) -> Source:
    if isinstance(owned, Mapping | np.ndarray | bytes) or not isinstance(owned, Iterable):
        raise DataFormatError(
            f"{place} cannot be used as examples; give a path, a DataFrame, a Dataset (one split of it), "
            "arrays (x, y), or something that yields (text, label)"
        )
    if isinstance(owned, Iterator):
        return Source(lambda: None, lambda: 0, coming=owned)
    return Source(lambda: examples_of_rows(place, map(_as_row, owned), image_size=image_size, scratch=scratch))


def _as_row(given: object) -> Row:  # noqa: PLR0911  one return a kind
    match given:
        case str():
            return {"text": given}
        case Mapping():
            return given
        case list() | tuple() as tokens, list() | tuple() as tags:
            return {"tokens": tokens, "tags": tags}
        case np.ndarray() | list() as values, label:
            return {"x": values, "y": label}
        case picture, label if isinstance(picture, Path) or hasattr(picture, "convert"):
            return {"image": picture, "label": label}
        case text, label:
            return {"text": text, "label": label}
        case _:
            return {type(given).__name__: given}


def _changed(path: Path) -> object:
    """A value that compares equal while a file, or every picture in a folder, is unchanged; files may vanish."""
    looked = ((file, _status(file)) for file in (image_files(path) if path.is_dir() else [path]))
    return tuple((file, status.st_mtime_ns, status.st_size) for file, status in looked if status is not None)


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None
