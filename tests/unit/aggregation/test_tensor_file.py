"""Tensor files that break while they are read."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregation.tensor_file import TensorFile
from edge_sdk.errors import StorageError, TensorTableError
from edge_sdk.protocol.tensors import write_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tensors"
    with path.open("wb") as file:
        write_tensors(file, {"a": np.arange(3, dtype=np.float32), "b": np.arange(8, dtype=np.float32).reshape(4, 2)})
    return path


def test_rows_are_read_from_where_they_are_asked_for(path: Path) -> None:
    rows = np.empty(4, np.float32)
    with closing(TensorFile(path, {"a": (3,), "b": (4, 2)})) as file:
        file.read("b", 2, rows)
    assert rows.tolist() == [2, 3, 4, 5]


def test_file_with_another_table_is_refused(path: Path) -> None:
    with pytest.raises(TensorTableError, match="missing"):
        TensorFile(path, {"a": (3,), "c": (4, 2)})


def test_file_cut_short_after_opening_is_a_storage_error(path: Path) -> None:
    with closing(TensorFile(path, {"a": (3,), "b": (4, 2)})) as file:
        with path.open("r+b") as other:
            other.truncate(path.stat().st_size - 4)
        with pytest.raises(StorageError, match="cut short"):
            file.read("b", 4, np.empty(4, np.float32))


def test_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        TensorFile(tmp_path / "nothing", {})
