"""What is held out stays held out, however the examples grow."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.data import ArrayExamples, TextExamples, split_held_out
from edge_sdk.data.holdout import Past, decide, example_keys


def texts(count: int) -> TextExamples:
    return TextExamples(tuple(f"text {number}" for number in range(count)), ("x",) * count)


def test_held_out_share_is_disjoint_complete_and_repeatable() -> None:
    examples = texts(2000)
    training, held_out = split_held_out(examples, 0.2, seed=5)
    assert abs(len(held_out) / 2000 - 0.2) < 0.04  # 4.5 standard deviations
    assert sorted(training.texts + held_out.texts) == sorted(examples.texts)
    assert split_held_out(examples, 0.2, seed=5) == (training, held_out)
    assert split_held_out(examples, 0.2, seed=6) != (training, held_out)
    assert [*training.texts] == [text for text in examples.texts if text in {*training.texts}]


def test_held_out_arrays_keep_their_labels() -> None:
    values = np.arange(40, dtype=np.float32).reshape(40, 1, 1)
    parts = split_held_out(ArrayExamples(values, tuple(range(40))), 0.25, seed=5)
    assert sum(map(len, parts)) == 40
    for part in parts:
        assert len(part)
        assert part.values.ravel().tolist() == list(part.labels)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_part_is_empty_where_two_differ(count: int, share: float) -> None:
    for seed in range(20):
        assert all(map(len, split_held_out(texts(count), share, seed)))


def test_one_example_is_trained_on_and_nothing_is_held_out_of_nothing() -> None:
    for seed in range(20):
        assert [len(part) for part in split_held_out(texts(1), 0.9, seed)] == [1, 0]
    assert [len(part) for part in split_held_out(texts(50), 0.0, 0)] == [50, 0]


def test_same_input_is_on_one_side_whatever_its_label() -> None:
    twice = TextExamples(("a", "a", "b", "c") * 5, tuple(map(str, range(20))))
    training, held_out = split_held_out(twice, 0.5, seed=1)
    assert not {*training.texts} & {*held_out.texts}


@given(
    steps=st.lists(st.lists(st.integers(0, 40), max_size=8), min_size=1, max_size=8),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    seed=st.integers(0, 1000),
)
def test_no_example_is_ever_both_trained_on_and_held_out_whatever_comes_and_goes(
    steps: list[list[int]], share: float, seed: int
) -> None:
    """Each step is what a source holds then: examples are added, vanish, return and change their order."""
    known: Past | None = None
    judged: set[str] = set()
    trained: set[str] = set()
    for step in filter(None, steps):
        examples = TextExamples(tuple(map(str, step)), ("x",) * len(step))
        is_held_out, known = decide(example_keys(examples, seed), share, known)
        held_out = {text for text, held in zip(examples.texts, is_held_out, strict=True) if held}
        could_judge = {*examples.texts} - trained
        judged |= held_out
        trained |= {*examples.texts} - held_out
        assert not judged & trained
        assert held_out or not could_judge or not share or len({*step}) == 1


def test_what_was_trained_on_alone_is_not_held_out_once_there_is_a_second() -> None:
    for seed in range(20):
        first, both = example_keys(texts(1), seed), example_keys(texts(2), seed)
        _, known = decide(first, 0.1, None)
        is_held_out, _ = decide(both, 0.1, known)
        assert is_held_out.tolist() == [False, True]


def test_share_that_is_raised_holds_out_nothing_that_was_trained_on() -> None:
    keys = example_keys(texts(200), 1)
    before, known = decide(keys[:100], 0.1, None)
    after, _ = decide(keys, 0.6, known)
    assert after[:100].tolist() == before.tolist()
    assert after[100:].mean() > 0.4


def test_growth_moves_nothing() -> None:
    known: Past | None = None
    where: dict[str, bool] = {}
    numbers = list(range(300))
    random.Random(7).shuffle(numbers)
    for count in (1, 2, 3, 10, 300):
        examples = TextExamples(tuple(f"text {number}" for number in numbers[:count]), ("x",) * count)
        is_held_out, known = decide(example_keys(examples, 3), 0.1, known)
        now = dict(zip(examples.texts, is_held_out.tolist(), strict=True))
        assert {text: held for text, held in now.items() if where.get(text)} == {t: h for t, h in where.items() if h}
        where |= now
