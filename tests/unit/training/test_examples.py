from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.data import TextExamples, read_examples, split_held_out, write_examples
from edge_sdk.errors import DataFormatError


def test_examples_from_csv_with_quotes_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('id,label,text\n1,pos,"a, ""b""\nc"\n2,neg,ü\n', encoding="utf-8")
    assert read_examples(path) == TextExamples(('a, "b"\nc', "ü"), ("pos", "neg"))


def test_examples_from_csv_with_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,b\n", encoding="utf-8-sig")
    assert read_examples(path) == TextExamples(("a",), ("b",))


def test_examples_written_are_read_back(tmp_path: Path) -> None:
    examples = TextExamples(("a\nb", 'quote " and ü'), ("x", "y"))
    write_examples(tmp_path / "data.jsonl", examples)
    assert read_examples(tmp_path / "data.jsonl") == examples


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", b"text,class\na,b\n", "columns text, class; it needs text, label"),
        ("a.csv", b"", r"columns \(none\); it needs text, label"),
        ("a.csv", b"text,label\n", "has no examples"),
        ("a.csv", b"text,label\na,b\nc\n", "row 2 needs a text and a label"),
        ("a.csv", b"text,label\n\xff,b\n", "save it as UTF-8"),
        ("a.jsonl", b"", "has no examples"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": 1, "label": "b"}\n', "row 2 needs a text and a label"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\nhello\n', "row 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": "a"}\n', "row 2 has the columns text; it needs"),
        ("a.jsonl", b'{"text": "a", "label": ""}\n', "row 1 needs a text and a label"),
        ("a.txt", b"a", "not a .csv or .jsonl file"),
    ],
)
def test_examples_from_a_wrong_file(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=complaint) as caught:
        read_examples(path)
    assert str(path) in str(caught.value)


def test_examples_from_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="does not exist"):
        read_examples(tmp_path / "none.csv")


def test_held_out_share_is_disjoint_complete_and_repeatable() -> None:
    examples = TextExamples(tuple(map(str, range(101))), ("x",) * 101)
    training, held_out = split_held_out(examples, 0.2, seed=5)
    assert len(held_out) == 20
    assert sorted(training.texts + held_out.texts) == sorted(examples.texts)
    assert split_held_out(examples, 0.2, seed=5) == (training, held_out)
    assert split_held_out(examples, 0.2, seed=6) != (training, held_out)
    assert list(training.texts) == sorted(training.texts, key=int)
