"""Tables of pandas, Hugging Face and pyarrow, recognised by their methods, so that no library has to be installed.

Integers that stand for classes become class names if the table knows these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_sdk.data.examples import Examples
from edge_sdk.data.images import IMAGE_SIZE
from edge_sdk.data.rows import Row, examples_of_rows, format_of
from edge_sdk.decoding import UNDECODABLE
from edge_sdk.errors import ConfigurationError, DataFormatError

_OTHER_NAMES = {"tags": "ner_tags"}


@dataclass(frozen=True, slots=True)
class Table:
    """The names of its columns; ``rows``, which iterates over given columns; and class names of integer columns.

    ``is_fixed`` says that it has the same rows as long as it has as many.
    """

    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterable[Row]]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_fixed: bool = True


def as_table(owned: Any) -> Table | None:  # noqa: ANN401 - whatever an application has
    """``owned`` as a table, ``None`` if it is not one of a known library."""
    if hasattr(owned, "itertuples") and hasattr(owned, "columns"):  # pandas
        columns = tuple(map(str, owned.columns))
        return Table(columns, lambda columns: _pandas_rows(owned, columns), is_fixed=False)
    if hasattr(owned, "select_columns") and isinstance(getattr(owned, "features", None), Mapping):  # Hugging Face
        features = owned.features
        classes = {name: _class_names(feature) for name, feature in features.items()}
        return Table(tuple(features), lambda columns: owned.select_columns(columns).with_format(None), classes)
    if hasattr(owned, "to_batches") and hasattr(owned, "column_names"):  # pyarrow
        classes = _stored_classes(owned.schema.metadata)
        return Table(
            tuple(owned.column_names), lambda columns: _arrow_rows(owned.select(columns).to_batches()), classes
        )
    return None


def examples_of_table(
    place: str, table: Table, *, image_size: int = IMAGE_SIZE, scratch: Path | None = None
) -> Examples | None:
    """The examples in ``table``, ``None`` if it has no row; ``DataFormatError`` if no format has its columns."""
    others = [name for name, column in _OTHER_NAMES.items() if name not in table.columns and column in table.columns]
    form = format_of((*table.columns, *others), place)
    chosen = {name: _column(name, table.columns) for name in form.columns}
    rows = (
        {name: _named(row[column], table.classes.get(column)) for name, column in chosen.items()}
        for row in table.rows([*chosen.values()])
    )
    return examples_of_rows(place, rows, form, image_size=image_size, scratch=scratch)


def read_parquet(path: Path, image_size: int = IMAGE_SIZE, scratch: Path | None = None) -> Examples:
    """The examples in a Parquet file, read batch by batch.

    Raises ``DataFormatError`` if there are none, ``ConfigurationError`` without pyarrow.
    """
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - needed for such files only
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{path} needs pyarrow, which is not installed: pip install 'raffm-edge[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            classes = _stored_classes(schema.metadata)
            table = Table(tuple(schema.names), lambda names: _arrow_rows(file.iter_batches(columns=names)), classes)
            examples = examples_of_table(str(path), table, image_size=image_size, scratch=scratch)
    except ArrowException as error:
        raise DataFormatError(f"{path} cannot be read as Parquet ({error}); write it again") from error
    if examples is None:
        raise DataFormatError(f"{path} has no examples; it needs at least one row")
    return examples


def _column(name: str, columns: Sequence[str]) -> str:
    return name if name in columns else _OTHER_NAMES.get(name, name)


def _pandas_rows(frame: Any, columns: Sequence[str]) -> Iterator[Row]:  # noqa: ANN401
    for values in zip(*(frame[column].tolist() for column in columns), strict=True):
        yield dict(zip(columns, values, strict=True))


def _arrow_rows(batches: Iterable[Any]) -> Iterator[Row]:
    for batch in batches:
        yield from batch.to_pylist()


def _class_names(feature: Any) -> Sequence[str]:  # noqa: ANN401
    """The names of a ClassLabel, or of a list of them; none for any other feature."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None) or ()


class _Feature(msgspec.Struct, frozen=True):
    names: tuple[str, ...] = ()
    feature: _Feature | None = None


class _Info(msgspec.Struct, frozen=True):
    features: dict[str, _Feature] = msgspec.field(default_factory=dict)


class _Stored(msgspec.Struct, frozen=True):
    info: _Info = _Info()


def _stored_classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """The class names that Hugging Face keeps in the metadata of its Arrow and Parquet files."""
    with suppress(*UNDECODABLE):  # another library may use the key for something else
        stored = msgspec.json.decode((metadata or {}).get(b"huggingface", b"{}"), type=_Stored)
        return {name: _class_names(feature) for name, feature in stored.info.features.items()}
    return {}


def _named(value: object, classes: Sequence[str] | None) -> object:
    """The class name for a class number, ``None`` for a number of no class: unlabelled rows often have -1."""
    if not classes:
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return [_named(entry, classes) for entry in value]
    if isinstance(value, int | np.integer):
        return classes[int(value)] if 0 <= value < len(classes) else None
    return value
