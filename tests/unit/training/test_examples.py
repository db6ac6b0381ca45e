from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edge_sdk.data import (
    ArrayExamples,
    Examples,
    PairedTexts,
    PlainTexts,
    TaggedExamples,
    TextExamples,
    map_examples,
    read_examples,
    read_texts,
    write_examples,
)
from edge_sdk.errors import DataFormatError
from tests.security import attacks


def test_examples_from_csv_with_quotes_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('id,label,text\n1,pos,"a, ""b""\nc"\n2,neg,ü\n', encoding="utf-8")
    assert read_examples(path) == TextExamples(('a, "b"\nc', "ü"), ("pos", "neg"))


def test_examples_from_csv_with_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,b\n", encoding="utf-8-sig")
    assert read_examples(path) == TextExamples(("a",), ("b",))


def test_jsonl_with_a_byte_order_mark_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y"}\r\n\r\n', encoding="utf-8-sig")
    assert read_examples(path) == TextExamples(("a", "b"), ("x", "y"))


def test_empty_values_beyond_the_columns_are_none(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,x,\nb,y,,\n")
    assert read_examples(path) == TextExamples(("a", "b"), ("x", "y"))


@pytest.mark.parametrize(
    "examples",
    [
        TextExamples(("a\nb", 'quote " and ü'), ("x", "y")),
        TaggedExamples((("New", "York"), ("a",)), (("PLACE", "PLACE"), ("O",))),
        PlainTexts(("once", "upon a time")),
        PairedTexts(("once", "a film"), ("einmal", "ein Film")),
    ],
)
def test_examples_written_are_read_back(tmp_path: Path, examples: Examples) -> None:
    path = write_examples(tmp_path / "data", examples)
    assert path.name == "data.jsonl"
    assert read_examples(path) == examples


@pytest.mark.parametrize("labels", [("x", "y"), (0, 7)])
@pytest.mark.parametrize(
    "values", [np.full((2, 5, 3), 0.1, dtype=np.float32), np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)]
)
def test_arrays_written_are_read_back(
    tmp_path: Path, values: np.ndarray, labels: tuple[str, ...] | tuple[int, ...]
) -> None:
    path = write_examples(tmp_path / "data.jsonl", ArrayExamples(values, labels))
    assert path.name == "data.npz"
    for found in (read_examples(path), read_examples(path, scratch=tmp_path), map_examples(path)):
        assert isinstance(found, ArrayExamples)
        assert (found.values.dtype, found.labels) == (values.dtype, labels)
        np.testing.assert_array_equal(found.values, values)


def test_windows_of_double_precision_are_read_as_single(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((2, 5, 3)), y=np.array([1, 0], dtype=np.uint8))
    found = read_examples(tmp_path / "data.npz")
    assert isinstance(found, ArrayExamples)
    assert (found.values.dtype, found.labels) == (np.float32, (1, 0))


def test_plain_texts_from_csv(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text\nonce\nupon\n", encoding="utf-8")
    assert read_examples(tmp_path / "data.csv") == PlainTexts(("once", "upon"))


def test_source_without_a_target_is_no_example(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("source,target\nonce,einmal\nupon,\n", encoding="utf-8")
    with pytest.raises(DataFormatError, match="row 2 needs a source and a target, both texts that are not empty"):
        read_examples(tmp_path / "data.csv")


def test_texts_wanted_and_something_else_found(tmp_path: Path) -> None:
    texts = TextExamples(("a",), ("x",))
    assert read_texts(write_examples(tmp_path / "texts", texts)) == texts
    with pytest.raises(DataFormatError, match="holds PlainTexts, not labelled texts"):
        read_texts(write_examples(tmp_path / "texts", PlainTexts(("a",))))


WINDOWS = np.zeros((2, 5, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"x": WINDOWS}, "lacks the array y; it needs x, y"),
        ({"x": WINDOWS, "y": np.zeros(3, int)}, r"a y of int64 \(3,\); it needs 2 strings or integers"),
        ({"x": WINDOWS, "y": np.zeros(2)}, r"a y of float64 \(2,\)"),
        ({"x": WINDOWS * np.nan, "y": np.zeros(2, int)}, "needs finite floats"),
        ({"x": WINDOWS.astype(float) + 1e300, "y": np.zeros(2, int)}, "needs finite floats .* in single precision too"),
        ({"x": WINDOWS[:0], "y": np.zeros(0, int)}, "at least one"),
        ({"x": WINDOWS[0], "y": np.zeros(5, int)}, r"an x of float32 \(5, 3\)"),
        ({"x": np.float32(1), "y": np.int64(1)}, r"an x of float32 \(\)"),
        ({"x": WINDOWS, "y": np.array(["a", None], object)}, "save it with numpy.savez"),
    ],
)
def test_arrays_from_a_wrong_file(tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataFormatError, match=complaint) as caught:
        read_examples(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", b"text,class\na,b\n", "columns text, class; it needs text, label"),
        ("a.csv", b"", r"columns \(none\); it needs text, label"),
        ("a.csv", b"text,label\n", "has no examples"),
        ("a.csv", b"text,label\na,b\nc\n", "row 2 needs a text and a label"),
        ("a.csv", b"text,label\n\xff,b\n", "save it as UTF-8"),
        ("a.csv", b"text,label\na,b\nhello, world,ham\n", "row 2 has 3 values for 2 columns; put what has a comma"),
        ("a.csv", b"label,text\nham,hello, world\n", "row 1 has 3 values for 2 columns"),
        ("a.csv", b"text,label,label\na,b,c\n", "more than one column label"),
        ("a.csv", b"text;label\na;b\n", "has ';' between its columns; save it with commas"),
        ("a.csv", b"id\ttext\tlabel\n1\ta\tb\n", r"has '\\t' between its columns"),
        ("a.csv", b'text,label\n"' + b"a" * 140_000 + b",b\n", "is a quotation mark never closed, or a text too long"),
        ("a.jsonl", b"", "has no examples"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": 1, "label": "b"}\n', "row 2 needs a text and a label"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\nhello\n', "row 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": "a"}\n', "row 2 has the columns text; it needs"),
        ("a.jsonl", b'{"text": "a", "label": ""}\n', "row 1 needs a text and a label"),
        ("a.jsonl", b'{"tokens": ["a"], "tags": ["O", "O"]}\n', "row 1 needs lists of tokens and of as many tags"),
        ("a.jsonl", b'{"tokens": [], "tags": []}\n', "row 1 needs lists of tokens"),
        ("a.jsonl", b'{"text": ""}\n', "row 1 needs a text that is not empty"),
        ("a.jsonl", b'{"text": "a", "class": "b"}\n', "row 1 has the columns text, class; it needs text, label"),
        ("a.npz", b"", "save it with numpy.savez"),
        ("a.txt", b"a", "not a .csv, .jsonl, .parquet or .npz file"),
    ],
)
def test_examples_from_a_wrong_file(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=complaint) as caught:
        read_examples(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("number", range(len(attacks.NPZ_FILES)))
def test_arrays_that_are_an_attack_are_refused(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(attacks.NPZ_FILES[number])
    for read in (read_examples, partial(read_examples, scratch=tmp_path), map_examples):
        with pytest.raises(DataFormatError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_arrays_that_unpack_to_a_multiple_of_their_size_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(attacks.npz_bomb())
    with pytest.raises(DataFormatError, match=r"unpacks to 8388\d{4} bytes"):
        read_examples(path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("scratch", [True, False])
def test_arrays_that_are_compressed_are_read(tmp_path: Path, scratch: bool, order: Literal["C", "F"]) -> None:
    windows = np.asarray(np.tile(np.arange(1000, dtype=">f4"), (2, 100, 1)), order=order)
    np.savez_compressed(tmp_path / "a.npz", x=windows, y=np.array([0, 1]))
    found = read_examples(tmp_path / "a.npz", scratch=tmp_path if scratch else None)
    assert isinstance(found, ArrayExamples)
    np.testing.assert_array_equal(found.values, windows)


_READ_IN_LITTLE = """
import resource, sys
from pathlib import Path
import numpy as np
from edge_sdk.data import map_examples, read_examples
from edge_sdk.data.batches import encode_examples
from edge_sdk.training.memory import memory_status
path = Path(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + (32 << 20),) * 2)
scratch, before = path.parent if sys.argv[2] == "scratch" else None, memory_status().peak_bytes
found = map_examples(path) if sys.argv[2] == "map" else read_examples(path, scratch=scratch)
batches = encode_examples(found, ("a",), max_tokens=1)
total = 0.0
for index in range(500):
    (values,) = batches.batch_of(np.array([index])).inputs.values()
    total += values.sum()
assert memory_status().peak_bytes - before < 16 << 20
print(round(total))
"""


def test_arrays_of_another_precision_need_not_fit_into_memory(tmp_path: Path) -> None:
    """NumPy's own is double: 192 MiB in the file."""
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((500, 16384, 3)), y=np.zeros(500, int))
    done = subprocess.run(
        [sys.executable, "-c", _READ_IN_LITTLE, path, "scratch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("way", "fits"), [("map", True), ("scratch", True), ("", False)])
@pytest.mark.parametrize(
    "values", [np.ones((500, 256, 256, 3), np.uint8), np.ones((500, 16384, 3), np.float32)], ids=["images", "windows"]
)
def test_arrays_of_a_file_need_not_fit_into_memory(tmp_path: Path, way: str, fits: bool, values: np.ndarray) -> None:
    """96 MiB with 32 to spare, and 16 MiB resident at most; the control reads them all."""
    path = write_examples(tmp_path / "data", ArrayExamples(values, (0,) * len(values)))
    done = subprocess.run(
        [sys.executable, "-c", _READ_IN_LITTLE, path, way], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == fits, done.stderr
    assert bool(done.stdout) == fits


def test_examples_from_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="does not exist"):
        read_examples(tmp_path / "none.csv")
