"""What an application may hand in: other libraries' tables, files, arrays, and things that grow."""

from __future__ import annotations

import enum
import os
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from edge_sdk.data import ArrayExamples, Examples, PairedTexts, PlainTexts, TaggedExamples, TextExamples, read_examples
from edge_sdk.data.owned import Owned, one_example, source_of
from edge_sdk.errors import ConfigurationError, DataFormatError

MAIL = TextExamples(("cheap pills", "see you at noon"), ("spam", "ham"))
TEXTS, LABELS = list(MAIL.texts), list(MAIL.labels)
SENTENCES = TaggedExamples((("New", "York"), ("a",)), (("PLACE", "PLACE"), ("O",)))
ANSWERS = PairedTexts(("two and two",), ("four",))
CLASSES = datasets.ClassLabel(names=["ham", "spam"])
TAGS = datasets.ClassLabel(names=["O", "PLACE"])


class Kind(str, enum.Enum):
    SPAM = "spam"
    HAM = "ham"


def read(owned: Owned) -> Examples | None:
    return source_of(owned).read()


def labelled() -> datasets.Dataset:
    """As the hub's: labels are numbers whose names the features know, beside a column of no interest."""
    features = datasets.Features({"idx": datasets.Value("int64"), "text": datasets.Value("string"), "label": CLASSES})
    return datasets.Dataset.from_dict({"idx": [0, 1], "text": TEXTS, "label": [1, 0]}, features=features)


def tagged() -> datasets.Dataset:
    words = datasets.List(datasets.Value("string"))
    features = datasets.Features({"tokens": words, "ner_tags": datasets.List(TAGS)})
    rows = {"tokens": [["New", "York"], ["a"]], "ner_tags": [[1, 1], [0]]}
    return datasets.Dataset.from_dict(rows, features=features)


def square(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


FRAME = pd.DataFrame({"id": [7, 8], "label": LABELS, "text": TEXTS})


@pytest.mark.parametrize(
    ("owned", "expected"),
    [
        (FRAME, MAIL),
        (FRAME.astype({"label": "category"}).set_index("id"), MAIL),
        (FRAME.assign(label=[1, 0]), TextExamples(MAIL.texts, ("1", "0"))),
        (FRAME[["text"]], PlainTexts(MAIL.texts)),
        (pd.DataFrame({"tokens": [["New", "York"], ["a"]], "tags": [["PLACE", "PLACE"], ["O"]]}), SENTENCES),
        (pa.table({"text": TEXTS, "label": LABELS}), MAIL),
        (labelled(), MAIL),
        (labelled().with_format("numpy"), MAIL),
        (labelled().to_iterable_dataset(), MAIL),
        (tagged(), SENTENCES),
        (datasets.Dataset.from_dict({"text": TEXTS}), PlainTexts(MAIL.texts)),
        (list(zip(TEXTS, LABELS, strict=True)), MAIL),
        (deque([("cheap pills", "spam"), {"text": "see you at noon", "label": "ham", "id": 3}]), MAIL),
        ([(["New", "York"], ["PLACE", "PLACE"]), (("a",), ("O",))], SENTENCES),
        (TEXTS, PlainTexts(MAIL.texts)),
        (list(zip(np.array(TEXTS), np.array(LABELS), strict=True)), MAIL),
        (list(np.array(TEXTS)), PlainTexts(MAIL.texts)),
        ([(text, Kind(label)) for text, label in zip(TEXTS, LABELS, strict=True)], MAIL),
        (MAIL, MAIL),
        (SENTENCES, SENTENCES),
        (PlainTexts(MAIL.texts), PlainTexts(MAIL.texts)),
        (ANSWERS, ANSWERS),
        ([], None),
        (TextExamples((), ()), None),
        (FRAME[:0], None),
    ],
)
def test_what_is_owned_is_read(owned: Owned, expected: Examples | None) -> None:
    assert read(owned) == expected


@pytest.mark.parametrize(
    ("owned", "complaint"),
    [
        (
            FRAME.rename(columns={"label": "class"}),
            "the DataFrame has the columns id, class, text; it needs text, label",
        ),
        (FRAME.assign(label=["spam", None]), "the DataFrame row 2 needs a text and a label"),
        (pd.DataFrame({"text": pd.array(["a", None], "string")}), "the DataFrame row 2 needs a text"),
        (pd.DataFrame({"source": ["a"], "target": [pd.NA]}), "the DataFrame row 1 needs a source and a target"),
        (pd.DataFrame({"tokens": [["a", pd.NA]], "tags": [["O", "O"]]}), "row 1 needs lists of tokens"),
        (pd.DataFrame({"text": [np.zeros(3)]}), "the DataFrame row 1 needs a text"),
        (pd.concat([FRAME, FRAME["label"]], axis=1), "the DataFrame has more than one column label"),
        (pa.table([["a"], ["b"], ["b"]], names=["text", "label", "label"]), "the Table has more than one column label"),
        (([("a", "x"), ("b", "x\ud83d")]), "row 2 needs a text and a label"),
        ((np.ma.masked_less(np.zeros((2, 5, 3)), 1), np.zeros(2, int)), "needs finite floats"),
        (labelled().remove_columns("text"), "the Dataset has the columns idx, label; it needs text, label"),
        (datasets.DatasetDict(train=labelled()), r"the DatasetDict cannot .* \(one split of it\)"),
        (pd.DataFrame({"tokens": [["a"]], "tags": [["O", "O"]]}), "row 1 needs lists of tokens"),
        (np.zeros((2, 3, 4)), "the ndarray cannot be used as examples"),
        (5, "the int cannot be used as examples"),
        ([("a", "x"), ("b", 0.5)], "the list row 2 needs a text and a label"),
        ([("a", "b", "c")], "the list row 1 has no column that is known; it needs text, label"),
        ([("half a pair \ud83d", "x")], "row 1 needs a text and a label"),
        (
            [(np.zeros((3, 2)), "x"), (np.zeros((4, 2)), "x")],
            r"row 2 has values of the shape \(4, 2\), row 1 has values of the shape \(3, 2\)",
        ),
        ((np.zeros((2, 5, 3)), np.zeros(3, int)), r"\(x, y\) has a y of int64 \(3,\)"),
        (TextExamples(("a", "half a pair \ud83d"), ("x", "x")), "the TextExamples row 2 needs a text and a label"),
        (TextExamples(("a",), (0.5,)), "the TextExamples row 1 needs a text and a label"),  # type: ignore[arg-type]
        (TextExamples(("a", "b"), ("x",)), "the TextExamples has 2 and 1 entries in its fields; give as many in each"),
        (PlainTexts(("a", "")), "the PlainTexts row 2 needs a text"),
        ([(object(), "x")], "row 1 needs a text"),
        ([{"image": 5, "label": "x"}], "row 1 has a picture of type int"),
        ([{"image": b"no picture", "label": "x"}], "row 1 has a picture that cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(owned: Owned, complaint: str) -> None:
    with pytest.raises(DataFormatError, match=complaint) as caught:
        read(owned)
    assert "\n" not in str(caught.value)


def test_unlabelled_row_of_a_dataset_does_not_get_the_last_class() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": CLASSES})
    unlabelled = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    with pytest.raises(DataFormatError, match="row 1 needs a text and a label, both strings; it has str, nothing"):
        read(unlabelled)


def test_arrays_in_memory() -> None:
    windows, images = np.ones((3, 8, 2)), np.full((2, 5, 5, 3), 7, dtype=np.uint8)
    found = read((windows, np.array(["a", "b", "a"])))
    assert isinstance(found, ArrayExamples)
    assert (found.values.dtype, found.values.shape, found.labels) == (np.float32, (3, 8, 2), ("a", "b", "a"))
    same = read([(window, label) for window, label in zip(windows, "aba", strict=True)])
    np.testing.assert_array_equal(same.values, found.values)
    for labels in (pd.Series(list("aba")), np.array(list("aba"), dtype=object)):
        assert read((windows, labels)).labels == ("a", "b", "a")
    found = read((images, [1, 0]))
    np.testing.assert_array_equal(found.values, images)
    assert found.labels == (1, 0)


@pytest.mark.parametrize("dataset", [labelled(), tagged(), datasets.Dataset.from_dict({"text": TEXTS})])
def test_parquet_of_a_dataset_keeps_its_class_names(dataset: datasets.Dataset, tmp_path: Path) -> None:
    dataset.to_parquet(tmp_path / "data.parquet")
    assert read_examples(tmp_path / "data.parquet") == read(dataset)


def test_parquet_of_pandas_and_of_pictures(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet") == MAIL
    rows = {"image": [square((255, 0, 0)), square((0, 0, 255))], "label": [1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": CLASSES})
    pictures = datasets.Dataset.from_dict(rows, features=features)
    pictures.to_parquet(tmp_path / "pictures.parquet")
    for found in (source_of(pictures, 8).read(), read_examples(tmp_path / "pictures.parquet", 8)):
        assert isinstance(found, ArrayExamples)
        assert (found.values.shape, found.labels) == ((2, 8, 8, 3), ("spam", "ham"))
        assert found.values[:, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("content", [b"", b"text,label\na,b\n"])
def test_parquet_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.parquet").write_bytes(content)
    with pytest.raises(DataFormatError, match=r"data\.parquet cannot be read as Parquet"):
        read_examples(tmp_path / "data.parquet")


def test_parquet_without_rows_or_with_other_columns(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"text": ["a"], "class": ["b"]}), tmp_path / "b.parquet")
    with pytest.raises(DataFormatError, match=r"a\.parquet has no examples"):
        read_examples(tmp_path / "a.parquet")
    with pytest.raises(DataFormatError, match=r"b\.parquet has the columns text, class; it needs"):
        read_examples(tmp_path / "b.parquet")


@pytest.mark.parametrize(("missing", "file"), [("pyarrow", "data.parquet"), ("PIL", "pictures")])
def test_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, file: str
) -> None:
    FRAME.to_parquet(tmp_path / "data.parquet")
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    square((0, 0, 0)).save(tmp_path / "pictures" / "cat" / "a.png")
    for name in list(sys.modules):
        if name.split(".")[0] == missing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigurationError, match=r"not installed: pip install 'raffm-edge\[(parquet|images)\]'"):
        read_examples(tmp_path / file)


class Database:
    """An application's own: what it yields grows."""

    def __init__(self) -> None:
        self.rows = [("a", "x")]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        yield from self.rows


def test_iterable_is_read_from_its_beginning_each_time() -> None:
    database = Database()
    source = source_of(database)
    assert source.read() == TextExamples(("a",), ("x",))
    database.rows.append(("b", "y"))
    assert source.read() == TextExamples(("a", "b"), ("x", "y"))
    assert source.version() is None


def test_array_examples_of_any_float_type_are_windows_as_a_model_takes_them() -> None:
    found = read(ArrayExamples(np.ones((3, 8, 2)), ("a", "b", "a")))
    assert isinstance(found, ArrayExamples)
    assert (found.values.dtype, found.labels) == (np.float32, ("a", "b", "a"))
    with pytest.raises(DataFormatError, match="the ArrayExamples has an x of int64"):
        read(ArrayExamples(np.ones((3, 8, 2), int), ("a", "b", "a")))


def test_label_that_is_corrected_in_a_data_frame_is_read() -> None:
    frame = FRAME.copy()
    source = source_of(frame)
    assert source.version() is None, "pandas does not say whether anything has changed"
    frame.loc[0, "label"] = "ham"
    assert source.read() == TextExamples(MAIL.texts, ("ham", MAIL.labels[1]))
    assert source_of(labelled()).version() == source_of(labelled()).version() is not None


def test_file_is_found_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.csv").write_text("text,label\na,x\n")
    monkeypatch.chdir(tmp_path)
    source = source_of("data.csv")
    monkeypatch.chdir("/")
    assert source.version() != ()
    assert source.read() == TextExamples(("a",), ("x",))


def test_file_has_another_version_once_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,x\n")
    source = source_of(str(path))
    before = source.version()
    assert source.version() == before
    path.write_text("text,label\na,y\n")
    os.utime(path, ns=(1, 1))
    assert source.version() != before
    assert source.read() == TextExamples(("a",), ("y",))


def test_picture_that_goes_while_a_folder_is_looked_at_has_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "a" / "gone.png"
    monkeypatch.setattr("edge_sdk.data.owned.image_files", lambda _: [gone])
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert source_of(tmp_path).version() == ()


def test_iterator_is_not_read_but_comes() -> None:
    source = source_of(pair for pair in [("a", "x")])
    assert source.read() is None
    assert source.coming is not None
    assert [one_example(given) for given in source.coming] == [TextExamples(("a",), ("x",))]
