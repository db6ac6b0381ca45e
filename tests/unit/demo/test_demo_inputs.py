from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from coordinator.demo.inputs import MIN_PER_DEVICE, deal, texts_of, write_examples
from edge_sdk.data import TextExamples, read_examples
from edge_sdk.errors import DataFormatError

DEVICES = ("a", "b", "c")
EXAMPLES = TextExamples(tuple(f"text {i}" for i in range(400)), tuple("xyz"[i % 3] for i in range(400)))


def test_deal_gives_every_example_to_exactly_one_place() -> None:
    dealt = deal(EXAMPLES, DEVICES, seed=3)
    parts = [*dealt.devices.values(), dealt.calibration, dealt.test]
    assert Counter(text for part in parts for text in part.texts) == Counter(EXAMPLES.texts)
    assert len(dealt.test) == 60
    assert min(map(len, dealt.devices.values())) >= MIN_PER_DEVICE


def test_deal_keeps_each_text_with_its_label() -> None:
    known = dict(zip(EXAMPLES.texts, EXAMPLES.labels, strict=True))
    for part in deal(EXAMPLES, DEVICES, seed=3).devices.values():
        assert all(known[text] == label for text, label in zip(part.texts, part.labels, strict=True))


def test_deal_with_the_same_seed_is_the_same_and_with_another_is_not() -> None:
    assert deal(EXAMPLES, DEVICES, seed=1) == deal(EXAMPLES, DEVICES, seed=1)
    assert deal(EXAMPLES, DEVICES, seed=1) != deal(EXAMPLES, DEVICES, seed=2)


def test_deal_with_small_concentration_is_less_even() -> None:
    def spread(concentration: float) -> float:
        dealt = deal(EXAMPLES, DEVICES, seed=5, concentration=concentration)
        shares = [Counter(part.labels)["x"] / len(part) for part in dealt.devices.values()]
        return max(shares) - min(shares)

    assert spread(0.3) > spread(1000.0)


def test_deal_of_too_few_examples_names_both_numbers() -> None:
    with pytest.raises(DataFormatError, match=r"20 examples are too few for 3 devices: 112 are needed"):
        deal(EXAMPLES.take(range(20)), DEVICES, seed=0)


def test_written_examples_are_read_back(tmp_path: Path) -> None:
    tricky = TextExamples(('a "quoted", text', "line\nbreak", "ünïcode"), ("x", "y", "x"))
    write_examples(tmp_path / "data.csv", tricky)
    assert read_examples(tmp_path / "data.csv") == tricky == texts_of(tmp_path / "data.csv")
