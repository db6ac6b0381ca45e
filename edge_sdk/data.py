"""Labelled texts: what a device owns, trains on, and keeps some of to judge a model by."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_sdk.disk import disk_errors
from edge_sdk.errors import DataFormatError

_COLUMNS = ("text", "label")


@dataclass(frozen=True, slots=True)
class TextExamples:
    """Texts and the label of each, in the same order."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> TextExamples:
        """The examples at ``indices``, in that order."""
        chosen = list(indices)
        return TextExamples(tuple(self.texts[i] for i in chosen), tuple(self.labels[i] for i in chosen))


def read_examples(path: Path) -> TextExamples:
    """Read a CSV file with the columns text and label, or a JSONL file with these keys, both UTF-8.

    Raises ``DataFormatError`` where the file is missing, is of another kind, lacks a column, has a row that is not an
    example (named by its number, the first being 1, a CSV's header not counted), or has no row at all.
    """
    reader = {".csv": _read_csv, ".jsonl": _read_jsonl}.get(path.suffix.lower())
    if reader is None:
        raise DataFormatError(f"{path} is not a .csv or .jsonl file; convert it to one of them")
    try:
        rows = list(reader(path))
    except FileNotFoundError as error:
        raise DataFormatError(f"{path} does not exist; name a .csv or .jsonl file of texts and labels") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataFormatError(f"{path} cannot be read ({error}); save it as UTF-8") from error
    if not rows:
        raise DataFormatError(f"{path} has no examples; it needs at least one row of text and label")
    texts, labels = zip(*rows, strict=True)
    return TextExamples(texts, labels)


def write_examples(path: Path, examples: TextExamples) -> None:
    """Write ``examples`` as JSONL: how the agent hands its training part to the training process.

    Raises ``DiskFullError`` or ``StorageError``.
    """
    pairs = zip(examples.texts, examples.labels, strict=True)
    lines = msgspec.json.Encoder().encode_lines({"text": text, "label": label} for text, label in pairs)
    with disk_errors(path):
        path.write_bytes(lines)


def split_held_out(examples: TextExamples, share: float, seed: int) -> tuple[TextExamples, TextExamples]:
    """(training, held-out): ``share`` of the examples, rounded, chosen by ``seed``, never trained on; order is kept."""
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = round(share * len(examples))
    return examples.take(sorted(order[held_out:])), examples.take(sorted(order[:held_out]))


def label_indices(examples: TextExamples, labels: Sequence[str]) -> NDArray[np.int64]:
    """The index in ``labels`` of each example's label; ``DataFormatError`` names one that is not among them."""
    index = {label: position for position, label in enumerate(labels)}
    for row, label in enumerate(examples.labels, start=1):
        if label not in index:
            raise DataFormatError(f"example {row} has the label {label!r}; the task's labels are {', '.join(labels)}")
    return np.array([index[label] for label in examples.labels], dtype=np.int64)


def _read_csv(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        _check_columns(path, reader.fieldnames or ())
        for number, row in enumerate(reader, start=1):
            yield _example(path, number, row)


def _read_jsonl(path: Path) -> Iterator[tuple[str, str]]:
    decoder = msgspec.json.Decoder(dict[str, object])
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = decoder.decode(line)
            except msgspec.DecodeError as error:
                raise DataFormatError(f"{path} row {number} is not a JSON object: {error}") from error
            _check_columns(path, row.keys(), number)
            yield _example(path, number, row)


def _check_columns(path: Path, found: Iterable[str], number: int | None = None) -> None:
    names = list(found)
    if not set(_COLUMNS) <= set(names):
        place = f"{path} has" if number is None else f"{path} row {number} has"
        raise DataFormatError(f"{place} the columns {', '.join(names) or '(none)'}; it needs {', '.join(_COLUMNS)}")


def _example(path: Path, number: int, row: dict[str, object] | dict[str | None, object]) -> tuple[str, str]:
    text, label = (row[column] for column in _COLUMNS)
    if not isinstance(text, str) or not isinstance(label, str) or not label:
        raise DataFormatError(f"{path} row {number} needs a text and a label, both strings; it has {text!r}, {label!r}")
    return text, label
