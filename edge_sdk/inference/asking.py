"""`edge-agent predict`: reads texts, pictures or files of windows as the running model takes them, and asks it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.arrays import array_errors, array_examples
from edge_sdk.data.images import IMAGE_SIZE, small_image
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import DataFormatError
from edge_sdk.inference.engine import Prediction
from edge_sdk.inference.serving import Serving

_WINDOW_AXES = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What was asked about, of the ``kind`` text, word, image or window, and what the model says."""

    kind: str
    asked: str
    said: Prediction | str


def ask(serving: Serving, words: Sequence[str], max_new_tokens: int) -> list[Answer]:
    """The model's answers; ``words`` are texts, or paths of pictures or of files with windows, as the model takes.

    A model that tags words does so for each word of a text, separated by spaces; one that writes text writes at most
    ``max_new_tokens`` tokens. Windows lie in .npy files, (steps, channels) or (n, steps, channels), or in CSV files
    with a column per channel and a row per step, one window after the other.
    Raises ``DataFormatError`` for input that the model does not take, ``ModelFormatError`` before the first release.
    """
    shape = serving.input_shape
    match serving.task:
        case ModelTask.IMAGE_CLASSIFICATION:
            return _answers("image", words, serving.predict(np.stack([_picture(Path(word), shape) for word in words])))
        case ModelTask.TIME_SERIES_CLASSIFICATION:
            files = [(word, _windows(Path(word), shape)) for word in words]
            names = [f"{word} {number}" for word, windows in files for number in range(1, len(windows) + 1)]
            return _answers("window", names, [answer for _, windows in files for answer in serving.predict(windows)])
        case ModelTask.TOKEN_CLASSIFICATION:
            sentences = [text.split() for text in words]
            return _answers("word", chain(*sentences), chain(*serving.tag(sentences)))
        case ModelTask.TEXT_GENERATION | ModelTask.TEXT2TEXT_GENERATION:
            return _answers("text", words, serving.generate(words, max_new_tokens))
        case _:
            return _answers("text", words, serving.predict(words))


def _answers(kind: str, names: Iterable[str], said: Iterable[Prediction | str]) -> list[Answer]:
    return [Answer(kind, *both) for both in zip(names, said, strict=True)]


def _picture(path: Path, shape: Sequence[int | None]) -> NDArray[np.uint8]:
    """Read a picture at the size that pictures have in training, or at the model's if that is larger."""
    _check_file(path, "pictures")
    return small_image(path, max(IMAGE_SIZE, *(size or 0 for size in shape)), str(path))


def _windows(path: Path, shape: Sequence[int | None]) -> NDArray[Any]:
    """Windows (n, steps, channels) as :func:`edge_sdk.data.arrays.array_examples` takes them."""
    _check_file(path, "windows: .npy or .csv files")
    if path.suffix.lower() not in {".npy", ".csv"}:
        raise DataFormatError(f"{path} is no .npy or .csv file; this device's model takes windows")
    values = _rows(path, shape[0]) if path.suffix.lower() == ".csv" else _array(path)
    values = values[None] if values.ndim == _WINDOW_AXES else values
    return array_examples(str(path), values, np.zeros(len(values), dtype=np.int64)).values


def _array(path: Path) -> NDArray[Any]:
    try:
        with array_errors(path, "save it with numpy.save"):
            return np.asarray(np.load(path))
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read ({error.strerror})") from error


def _rows(path: Path, steps: int | None) -> NDArray[Any]:
    """The rows of a CSV as windows (n, steps, channels); a header is skipped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
        first = 1 if rows and _is_header(rows[0]) else 0
        with np.errstate(over="ignore"):  # values that overflow become infinite, and those are refused later
            values = np.array(rows[first:], dtype=np.float32)
    except (OSError, ValueError, csv.Error) as error:
        raise DataFormatError(f"{path} cannot be read as rows of numbers, one column per channel") from error
    steps = steps or len(values)
    if not len(values) or len(values) % steps:
        raise DataFormatError(f"{path} has {len(values)} rows, which are no windows of the model's {steps} steps")
    return values.reshape(-1, steps, values.shape[1])


def _is_header(row: Sequence[str]) -> bool:
    """Whether any cell is not a number."""
    try:
        _ = [float(cell) for cell in row]
    except ValueError:
        return True
    return False


def _check_file(path: Path, takes: str) -> None:
    if not path.is_file():
        raise DataFormatError(f"{str(path)!r} is no file; this device's model takes {takes}")
