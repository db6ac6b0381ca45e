"""Examples that are rows of text: CSV and JSONL."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_sdk.data.examples import PlainTexts, TaggedExamples, TextExamples
from edge_sdk.errors import DataFormatError

Rows = TextExamples | TaggedExamples | PlainTexts


@dataclass(frozen=True, slots=True)
class _Format:
    """The columns of a type of examples, and a row's values as an example, or ``None`` where they are none."""

    columns: tuple[str, ...]
    example: Callable[..., tuple[object, ...] | None]
    needs: str


def _labelled(text: object, label: object) -> tuple[object, ...] | None:
    return (text, label) if isinstance(text, str) and isinstance(label, str) and label else None


def _tagged(tokens: object, tags: object) -> tuple[object, ...] | None:
    if not isinstance(tokens, list) or not isinstance(tags, list) or not len(tokens) == len(tags) > 0:
        return None
    return (tuple(tokens), tuple(tags)) if all(isinstance(word, str) and word for word in tokens + tags) else None


def _plain(text: object) -> tuple[object, ...] | None:
    return (text,) if isinstance(text, str) and text else None


_FORMATS: dict[type[Rows], _Format] = {
    TextExamples: _Format(("text", "label"), _labelled, "a text and a label, both strings"),
    TaggedExamples: _Format(("tokens", "tags"), _tagged, "lists of tokens and of as many tags, all strings"),
    PlainTexts: _Format(("text",), _plain, "a text that is not empty"),
}


def read_csv(path: Path) -> Rows:
    """Examples of the type that the header tells; ``DataFormatError`` where there are none."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        kind = _kind_of(reader.fieldnames or (), str(path))
        return _from_rows(path, kind, reader)


def read_jsonl(path: Path) -> Rows:
    """Examples of the type that the first row's keys tell; ``DataFormatError`` where there are none."""
    with path.open("rb") as file:
        rows = _decoded(path, file)
        first = next(rows, None)
        if first is None:
            raise _no_examples(path)
        return _from_rows(path, _kind_of(first, f"{path} row 1"), itertools.chain([first], rows))


def write_jsonl(path: Path, examples: Rows) -> None:
    """Write ``examples`` for :func:`read_jsonl`."""
    names = _FORMATS[type(examples)].columns
    rows = (dict(zip(names, row, strict=True)) for row in zip(*examples.columns(), strict=True))
    path.write_bytes(msgspec.json.Encoder().encode_lines(rows))


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[dict[str, object]]:
    decoder, number = msgspec.json.Decoder(dict[str, object]), 0
    try:
        for number, line in enumerate(lines, start=1):  # noqa: B007 - the error names it
            yield decoder.decode(line)
    except msgspec.DecodeError as error:
        raise DataFormatError(f"{path} row {number} is not a JSON object: {error}") from error


def _kind_of(columns: Iterable[str], place: str) -> type[Rows]:
    """What has these columns. A text beside others is labelled: one whose label is misnamed is not taken for plain."""
    names = list(columns)
    for kind in (TextExamples, TaggedExamples):
        if {*_FORMATS[kind].columns} <= {*names}:
            return kind
    if names == ["text"]:
        return PlainTexts
    found = ", ".join(names) or "(none)"
    raise DataFormatError(f"{place} has the columns {found}; it needs text, label, or tokens, tags, or text alone")


def _from_rows(path: Path, kind: type[Rows], rows: Iterable[Mapping[str, object]]) -> Rows:
    examples = [_example(f"{path} row {number}", _FORMATS[kind], row) for number, row in enumerate(rows, start=1)]
    if not examples:
        raise _no_examples(path)
    return kind(*zip(*examples, strict=True))


def _example(place: str, form: _Format, row: Mapping[str, object]) -> tuple[object, ...]:
    if not {*form.columns} <= row.keys():
        raise DataFormatError(f"{place} has the columns {', '.join(row)}; it needs {', '.join(form.columns)}")
    values = [row[column] for column in form.columns]
    example = form.example(*values)
    if example is None:
        raise DataFormatError(f"{place} needs {form.needs}; it has {', '.join(repr(value)[:100] for value in values)}")
    return example


def _no_examples(path: Path) -> DataFormatError:
    return DataFormatError(f"{path} has no examples; it needs at least one row")
