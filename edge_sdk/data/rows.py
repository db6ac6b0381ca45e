"""Examples as rows with named columns, of CSV, of JSONL, or in memory."""

from __future__ import annotations

import codecs
import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.arrays import array_examples
from edge_sdk.data.examples import ArrayExamples, Examples, PairedTexts, PlainTexts, TaggedExamples, TextExamples
from edge_sdk.data.images import IMAGE_SIZE, small_image
from edge_sdk.data.mapped import mapped
from edge_sdk.decoding import UNDECODABLE, brief
from edge_sdk.errors import DataFormatError
from edge_sdk.text import plain_text

Row = Mapping[str, object]
_NEEDED = "text, label, or tokens, tags, or source, target, or text alone, or image, label, or x, y"


@dataclass(frozen=True, slots=True)
class Format:
    """How rows become examples of type ``kind``.

    ``example`` converts the values of ``columns`` to an example's fields, or returns ``None`` if they are not one;
    ``needs`` says in words what they should be.
    """

    kind: type[Examples]
    columns: tuple[str, ...]
    example: Callable[..., tuple[object, ...] | None]
    needs: str


def _labelled(text: object, label: object) -> tuple[object, ...] | None:
    words, named = plain_text(text), _label(label)
    return (words, named) if words is not None and isinstance(named, str) and named else None


def _tagged(tokens: object, tags: object) -> tuple[object, ...] | None:
    words, names = _strings(tokens), _strings(tags)
    return (words, names) if words and len(words) == len(names) else None


def _plain(text: object) -> tuple[object, ...] | None:
    words = plain_text(text)
    return (words,) if words else None


def _paired(source: object, target: object) -> tuple[object, ...] | None:
    both = plain_text(source), plain_text(target)
    return both if all(both) else None


def _array(values: object, label: object) -> tuple[object, ...] | None:
    array = values if isinstance(values, np.ndarray) else _array_of_lists(values)
    return (array, label) if array is not None and _is_class(label) else None


def _picture(image: object, label: object) -> tuple[object, ...] | None:
    return (image, label) if image is not None and _is_class(label) else None


_LABELLED = Format(TextExamples, ("text", "label"), _labelled, "a text and a label, both strings")
_TAGGED = Format(TaggedExamples, ("tokens", "tags"), _tagged, "lists of tokens and of as many tags, all strings")
_PLAIN = Format(PlainTexts, ("text",), _plain, "a text that is not empty")
_PAIRED = Format(PairedTexts, ("source", "target"), _paired, "a source and a target, both texts that are not empty")
_ARRAYS = Format(ArrayExamples, ("x", "y"), _array, "an array of numbers and a label")
_IMAGES = Format(ArrayExamples, ("image", "label"), _picture, "a picture and a label")
_OF_COLUMNS = (_LABELLED, _TAGGED, _PAIRED, _ARRAYS, _IMAGES)
_KNOWN = {column for form in _OF_COLUMNS for column in form.columns}
_FORMATS = {form.kind: form for form in (_LABELLED, _TAGGED, _PLAIN, _PAIRED, _ARRAYS)}


def format_of(columns: Iterable[str], place: str) -> Format:
    """The format that has these columns. Plain texts need ``text`` to be the only column, in case a label is misnamed.

    Raises ``DataFormatError``, which names ``place``, if no format has these columns or one of them occurs twice.
    """
    names = list(columns)
    for form in _OF_COLUMNS:
        if {*form.columns} <= {*names}:
            if twice := [name for name in form.columns if names.count(name) > 1]:
                raise DataFormatError(f"{place} has more than one column {twice[0]}; rename or remove the others")
            return form
    if names == ["text"]:
        return _PLAIN
    raise DataFormatError(f"{place} has {_in_words(names)}; it needs {_NEEDED}")


def are_columns(names: Iterable[object]) -> bool:
    """Whether a format of two columns has both among ``names``."""
    given = {*names}
    return any({*form.columns} <= given for form in _OF_COLUMNS)


def examples_of_rows(
    place: str,
    rows: Iterable[Row],
    form: Format | None = None,
    *,
    image_size: int = IMAGE_SIZE,
    scratch: Path | None = None,
) -> Examples | None:
    """Examples of the format ``form``, by default that of the first row's columns; ``None`` if there is no row.

    Pictures become squares of ``image_size`` pixels a side. With ``scratch``, a folder, they and image arrays are kept
    on its disk, not in memory. Raises ``DataFormatError`` for the first row that is no example.

    >>> examples_of_rows("mail", [{"text": "cheap pills", "label": "spam"}])
    TextExamples(texts=('cheap pills',), labels=('spam',))
    >>> examples_of_rows("mail", [{"text": "cheap pills", "lable": "spam"}])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    edge_sdk.errors.DataFormatError: mail row 1 has the columns text, lable; it needs text, label, or tokens, tags...
    """
    coming: Iterator[Row] = iter(rows)
    first = next(coming, None)
    if first is None:
        return None
    form = form or format_of(first, f"{place} row 1")
    rows = itertools.chain([first], coming)
    numbered = zip((f"{place} row {number}" for number in itertools.count(1)), rows, strict=False)
    if form is _IMAGES:
        return _from_arrays(place, (_small(where, row, image_size) for where, row in numbered), scratch)
    examples = (_example(where, form, row) for where, row in numbered)
    if form is _ARRAYS:
        return _from_arrays(place, examples, scratch)
    columns: Any = zip(*examples, strict=True)
    return form.kind(*columns)


def rows_of(examples: Examples) -> Iterator[dict[str, Any]]:
    """Each example as a row for :func:`examples_of_rows`, of values that JSON can represent."""
    names = _FORMATS[type(examples)].columns
    for values in zip(*examples.columns(), strict=True):
        plain = (value.tolist() if isinstance(value, np.ndarray) else value for value in values)
        yield dict(zip(names, plain, strict=True))


def read_csv(path: Path, image_size: int = IMAGE_SIZE, scratch: Path | None = None) -> Examples:
    """The examples in a CSV file, of the type that its header says; ``DataFormatError`` if there are none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        form = format_of(_header(path, reader), str(path))
        rows = _of_columns(path, reader)
        return _some(path, examples_of_rows(str(path), rows, form, image_size=image_size, scratch=scratch))


def read_jsonl(
    path: Path, image_size: int = IMAGE_SIZE, scratch: Path | None = None, *, size_bytes: int | None = None
) -> Examples:
    """The examples in a JSONL file, of the type that its first row's keys say; ``DataFormatError`` if it has none.

    With ``size_bytes``, what lies after so many bytes, the end of a line, is not read.
    """
    with path.open("rb") as file:
        rows = _decoded(path, file if size_bytes is None else _up_to(file, size_bytes))
        return _some(path, examples_of_rows(str(path), rows, image_size=image_size, scratch=scratch))


def write_jsonl(path: Path, examples: Examples) -> None:
    """Write ``examples`` for :func:`read_jsonl`."""
    with path.open("wb") as file:
        file.writelines(lines_of(examples))


def lines_of(examples: Examples) -> Iterator[bytes]:
    """Each example as a line of JSON; a picture's takes three times its pixels, so that they are made one by one."""
    encoder = msgspec.json.Encoder()
    return (encoder.encode(row) + b"\n" for row in rows_of(examples))


def _header(path: Path, reader: csv.DictReader[str]) -> Sequence[str]:
    """The names of the columns; ``DataFormatError`` if they are separated by anything but commas."""
    names = reader.fieldnames or ()
    others = [sign for sign in (";", "\t") if len(names) == 1 and sign in names[0]]
    if others and not _KNOWN.isdisjoint(names[0].split(others[0])):
        raise DataFormatError(f"{path} has {others[0]!r} between its columns; save it with commas")
    return names


def _of_columns(path: Path, rows: Iterable[dict[str | Any, Any]]) -> Iterator[Row]:
    """``rows``; ``DataFormatError`` if one has more values than columns: its text has been cut at an unquoted comma.

    A ``DictReader`` puts surplus values under the key ``None``.
    """
    for number, row in enumerate(rows, start=1):
        beyond, columns = row.get(None, ()), len(row) - 1
        if any(beyond):
            raise DataFormatError(
                f"{path} row {number} has {columns + len(beyond)} values for {columns} columns; "
                "put what has a comma in it between quotation marks"
            )
        yield row


def _up_to(lines: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """The lines within the first bytes."""
    for line in lines:
        if size_bytes <= 0:
            return
        size_bytes -= len(line)
        yield line


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    """Decoded JSON lines; as in CSV, a byte-order mark and empty lines are skipped."""
    decoder, number = msgspec.json.Decoder(dict[str, object]), 0
    try:
        for number, line in enumerate(lines, start=1):
            row = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if row.strip():
                yield decoder.decode(row)
    except UNDECODABLE as error:
        raise DataFormatError(f"{path} row {number} is not a JSON object: {brief(error)}") from error


def _example(place: str, form: Format, row: Row) -> tuple[object, ...]:
    if not {*form.columns} <= row.keys():
        raise DataFormatError(f"{place} has {_in_words([*row])}; it needs {', '.join(form.columns)}")
    values = [row[column] for column in form.columns]
    example = form.example(*values)
    if example is None:
        raise DataFormatError(f"{place} needs {form.needs}; it has {', '.join(map(_kind_of, values))}")
    return example


def _in_words(columns: Sequence[object]) -> str:
    """The columns by name if any of them is known; otherwise they may be an example, which no error may quote."""
    if not columns or not _KNOWN.isdisjoint(columns):
        return f"the columns {', '.join(map(str, columns)) or '(none)'}"
    return "no column that is known"


def _kind_of(value: object) -> str:
    """The kind of ``value``, in words that do not quote it."""
    if value is None or (isinstance(value, str) and not value):
        return "nothing"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__


def _small(place: str, row: Row, size: int) -> tuple[Any, ...]:
    image, label = _example(place, _IMAGES, row)
    return small_image(image, size, place), label


def _from_arrays(place: str, examples: Iterable[tuple[Any, ...]], scratch: Path | None) -> ArrayExamples:
    labels: list[object] = []
    coming = _alike(place, examples, labels)
    first = next(coming)
    arrays = itertools.chain([first], coming)
    if scratch is None or first.dtype != np.uint8:
        return array_examples(place, np.stack([*arrays]), np.array(labels))
    return array_examples(place, mapped(arrays, scratch), np.array(labels))


def _alike(place: str, examples: Iterable[tuple[Any, ...]], labels: list[object]) -> Iterator[NDArray[Any]]:
    """The array of each example; their labels are appended to ``labels``. ``DataFormatError`` if shapes differ."""
    first = ""
    for number, (array, label) in enumerate(examples, start=1):
        shape = f"{'pixels' if array.dtype == np.uint8 else 'values'} of the shape {array.shape}"
        first = first or shape
        if shape != first:
            raise DataFormatError(f"{place} row {number} has {shape}, row 1 has {first}")
        labels.append(label)
        yield array


def _array_of_lists(values: object) -> NDArray[Any] | None:
    """Nested lists of numbers as an array: uint8 for three axes of integers 0..255 (an image), else float32."""
    try:
        array = np.array(values if isinstance(values, list) else None, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):  # the last for whole numbers of hundreds of digits
        return None
    is_image = array.ndim == 3 and array.size and np.isin(array, np.arange(256)).all()
    with np.errstate(over="ignore"):  # values that overflow become infinite, and those are refused later
        return array.astype(np.uint8 if is_image else np.float32) if array.ndim > 1 else None


def _label(value: object) -> object:
    """A label as a name; a class number becomes its decimal digits, as in a CSV."""
    if isinstance(value, str):
        return plain_text(value)
    return str(value) if _is_class(value) else value


def _is_class(value: object) -> bool:
    return isinstance(value, str | int | np.integer) and not isinstance(value, bool)


def _strings(values: object) -> tuple[str, ...]:
    """The strings in a sequence; none if it is not a sequence, or if any item is empty or not a string."""
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    texts = [plain_text(value) for value in listed] if isinstance(listed, list | tuple) else []
    return tuple(text for text in texts if text) if all(texts) else ()


def _some(path: Path, examples: Examples | None) -> Examples:
    if examples is None:
        raise DataFormatError(f"{path} has no examples; it needs at least one row")
    return examples
