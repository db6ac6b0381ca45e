"""The types of examples, and what is the same for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.mapped import folder_of, mapped
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import DataFormatError

if TYPE_CHECKING:
    from typing_extensions import Self

_Column = tuple[object, ...] | NDArray[np.generic]


class Columns:
    """What all types of examples have in common: each field is a column with one entry per example."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.columns()[0])

    def columns(self) -> list[_Column]:
        """The fields' values."""
        return [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]

    def take(self, indices: Iterable[int]) -> Self:
        """The examples at ``indices``, in that order; columns that were mapped from disk are so again."""
        chosen = list(indices)
        return type(self)(*(_entries(column, chosen) for column in self.columns()))


@dataclass(frozen=True, slots=True)
class TextExamples(Columns):
    """Texts, and the label of each."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaggedExamples(Columns):
    """Sentences as words, and a tag for each word."""

    sentences: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class PlainTexts(Columns):
    """Texts that a model learns to continue."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairedTexts(Columns):
    """Texts, and for each the answer that a model learns to write."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayExamples(Columns):
    """Arrays, and for each its label or the label's index among the task's.

    ``values`` are windows of sensor channels, float32 (examples, steps, channels), or images, uint8 (examples, height,
    width, channels).
    """

    values: NDArray[np.float32] | NDArray[np.uint8]
    labels: tuple[str, ...] | tuple[int, ...]


IMAGE_AXES = 4
"""Examples, height, width and channels."""
Examples = TextExamples | TaggedExamples | PlainTexts | PairedTexts | ArrayExamples
_E = TypeVar("_E", bound=Columns)


def joined(first: _E, second: _E) -> _E:
    """The examples of both, in this order; ``DataFormatError`` where they differ in kind or in shape."""
    if type(first) is not type(second):
        raise DataFormatError(f"{type(second).__name__} cannot be added to {type(first).__name__}; give the same kind")
    return type(first)(*map(_joined_columns, first.columns(), second.columns()))


def task_of(examples: Examples) -> ModelTask:
    """What a model can learn from ``examples``."""
    if isinstance(examples, ArrayExamples):
        is_image = examples.values.ndim == IMAGE_AXES
        return ModelTask.IMAGE_CLASSIFICATION if is_image else ModelTask.TIME_SERIES_CLASSIFICATION
    return {
        TextExamples: ModelTask.TEXT_CLASSIFICATION,
        TaggedExamples: ModelTask.TOKEN_CLASSIFICATION,
        PlainTexts: ModelTask.TEXT_GENERATION,
        PairedTexts: ModelTask.TEXT2TEXT_GENERATION,
    }[type(examples)]


def label_indices(examples: TextExamples | ArrayExamples, labels: Sequence[str]) -> NDArray[np.int64]:
    """The index in ``labels`` of each example's label; ``DataFormatError`` names the first example with another one."""
    index: dict[str | int, int] = {place: place for place in range(len(labels))}
    index |= {label: place for place, label in enumerate(labels)}
    for row, label in enumerate(examples.labels, start=1):
        if label not in index:
            raise _unknown_label(row, labels)
    return np.array([index[label] for label in examples.labels], dtype=np.int64)


def tag_indices(examples: TaggedExamples, labels: Sequence[str]) -> list[NDArray[np.int64]]:
    """The index in ``labels`` of each word's tag; ``DataFormatError`` names the first example with another one."""
    index = {label: place for place, label in enumerate(labels)}
    for row, tags in enumerate(examples.tags, start=1):
        for tag in tags:
            if tag not in index:
                raise _unknown_label(row, labels)
    return [np.array([index[tag] for tag in tags], dtype=np.int64) for tags in examples.tags]


def pixel_values(
    images: NDArray[np.uint8], mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)
) -> NDArray[np.float32]:
    """Images (batch, height, width, channels) as a model wants them: float32 (batch, channels, height, width).

    A pixel p becomes (p / 255 - ``mean``) / ``std``, with one mean and std for all channels or one for each.
    """
    scale, shift = 1 / (255 * np.asarray(std)), np.asarray(mean) / np.asarray(std)
    values = images * scale.astype(np.float32) - shift.astype(np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)


def _entries(column: _Column, chosen: list[int]) -> _Column:
    if not isinstance(column, np.ndarray):
        return tuple(column[index] for index in chosen)
    folder = folder_of(column)
    return column[chosen] if folder is None or not chosen else mapped((column[index] for index in chosen), folder)


def _joined_columns(first: _Column, second: _Column) -> _Column:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
            raise DataFormatError(f"{_shape_of(second)} cannot be added to {_shape_of(first)}; give the same shape")
        folder = folder_of(first)
        return np.concatenate((first, second)) if folder is None else mapped(itertools.chain(first, second), folder)
    together = (*first, *second)
    if len({*map(type, together)}) > 1:
        raise DataFormatError("labels are names here and numbers there; give names everywhere")
    return together


def _shape_of(column: NDArray[np.generic]) -> str:
    return f"{column.dtype} {column.shape[1:]}"


def _unknown_label(row: int, labels: Sequence[str]) -> DataFormatError:
    return DataFormatError(f"example {row} has another label than the task's, which are {', '.join(labels)}")
