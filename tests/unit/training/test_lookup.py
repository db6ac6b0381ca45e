from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.errors import TrainingError
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from edge_sdk.training.lookup import Lookup

TABLE = np.arange(40, dtype=np.float32).reshape(10, 4)
IDS = np.array([[7, 2, 2], [9, 7, 0]])
PLACES, DECODER_PLACES = "rows.input_ids.words", "rows.decoder_input_ids.words"


def lookup_in(folder: Path, *inputs: str, **tensors: NDArray[np.generic]) -> Lookup:
    path = folder / "frozen"
    with path.open("wb") as file:
        write_tensors(file, {"before": np.ones(3, dtype=np.float32), "words": TABLE, **tensors})
    return Lookup(path, memoryview(path.read_bytes()), ["input_ids", *inputs])


def test_a_batch_gets_the_rows_that_it_names_and_no_others(tmp_path: Path) -> None:
    fed = lookup_in(tmp_path, PLACES).feeds({"input_ids": IDS})

    assert fed["words"].tolist() == TABLE[[0, 2, 7, 9]].tolist()
    np.testing.assert_array_equal(fed["words"][fed[PLACES]], TABLE[IDS])
    assert fed[PLACES].dtype == np.int64


def test_two_inputs_share_the_rows_of_a_table(tmp_path: Path) -> None:
    written = np.array([[2, 5, 1, 9]])
    fed = lookup_in(tmp_path, PLACES, DECODER_PLACES).feeds({"input_ids": IDS, "decoder_input_ids": written})

    assert len(fed["words"]) == 6
    np.testing.assert_array_equal(fed["words"][fed[PLACES]], TABLE[IDS])
    np.testing.assert_array_equal(fed["words"][fed[DECODER_PLACES]], TABLE[written])


@pytest.mark.parametrize("token", [-1, 10])
def test_a_token_beyond_the_table_is_an_error(tmp_path: Path, token: int) -> None:
    with pytest.raises(TrainingError, match=f"token {token}, words has 10 rows"):
        lookup_in(tmp_path, PLACES).feeds({"input_ids": np.array([[3, token]])})


def test_a_file_that_lost_its_name_is_still_read(tmp_path: Path) -> None:
    lookup = lookup_in(tmp_path, PLACES)
    (tmp_path / "frozen").unlink()

    assert len(lookup.feeds({"input_ids": IDS})["words"]) == 4


def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    lookup = lookup_in(tmp_path, PLACES)
    path = tmp_path / "frozen"
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(TrainingError, match="file of words was cut short"):
        lookup.feeds({"input_ids": IDS})


@pytest.mark.parametrize(
    "name", ["rows.input_ids.before", "rows.input_ids.bytes", "rows.input_ids.none", "rows.input_ids", "rows."]
)
def test_what_is_no_table_of_the_file_is_left_to_others(tmp_path: Path, name: str) -> None:
    lookup = lookup_in(tmp_path, name, bytes=np.ones((2, 2), dtype=np.int8))

    assert (set(lookup.tables), set(lookup.places)) == (set(), set())
    assert lookup.feeds({"input_ids": IDS}) == {}


def test_the_table_stays_out_of_memory(tmp_path: Path) -> None:
    """Of 64 MiB in the file, ten rows are read: no page of the mapped table is touched."""
    path = tmp_path / "frozen"
    with path.open("wb") as file:
        write_tensors(file, {"words": np.ones((1 << 16, 256), dtype=np.float32)})
    pages = np.memmap(path, mode="r")
    lookup = Lookup(path, memoryview(pages), [PLACES])
    before = _resident_kib(path)
    lookup.feeds({"input_ids": np.arange(10) * 6000})

    assert read_tensors(memoryview(pages))["words"].shape == (1 << 16, 256)
    assert _resident_kib(path) == before < 4096


def _resident_kib(path: Path) -> int:
    """What of the file is mapped and resident in this process."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    at = next(index for index, line in enumerate(lines) if line.endswith(f" {path}"))
    return next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:"))
