from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.data import TextExamples, label_indices
from edge_sdk.errors import DataFormatError, ModelFormatError
from edge_sdk.text import TextEncoder
from edge_sdk.training.data import Batch, EncodedExamples, encode_examples, logit_offset
from tests.support.logistic_graph import LABELS, examples, tokenizer_json


def encoded(count: int = 20, max_tokens: int = 16) -> EncodedExamples:
    return encode_examples(examples(count, seed=1), LABELS, tokenizer_json(), max_tokens)


def test_batches_hold_every_example_once_padded_to_their_longest() -> None:
    data = encoded(21)
    batches = list(data.batches(8, seed=4, epoch=0))
    assert [len(batch.labels) for batch in batches] == [8, 8, 5]
    rows = [tuple(ids[mask == 1]) for batch in batches for ids, mask in zip(*both(batch), strict=True)]
    assert sorted(rows) == sorted(tuple(row) for row in data.rows)
    for batch in batches:
        assert batch.input_ids.dtype == batch.labels.dtype == np.int64
        assert batch.attention_mask.sum(axis=1).max() == batch.input_ids.shape[1]
        assert (batch.input_ids[batch.attention_mask == 0] == data.pad_id).all()


def both(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return batch.input_ids, batch.attention_mask


def test_batches_of_an_epoch_repeat_with_its_seed_only() -> None:
    data = encoded()

    def order(seed: int, epoch: int) -> list[list[list[int]]]:
        return [batch.input_ids.tolist() for batch in data.batches(4, seed, epoch)]

    assert order(4, 0) == order(4, 0)
    assert order(4, 0) != order(4, 1)
    assert order(4, 0) != order(5, 0)


def test_texts_are_cut_at_max_tokens() -> None:
    assert max(len(row) for row in encoded(max_tokens=2).rows) == 2


def test_labels_not_of_the_task_are_named() -> None:
    with pytest.raises(DataFormatError, match="example 2 has the label 'neutral'"):
        label_indices(TextExamples(("a", "b"), ("positive", "neutral")), LABELS)


def test_tokenizer_that_is_none() -> None:
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json of 2 bytes"):
        TextEncoder(b"{}", 8)


def test_logit_offset_of_a_balanced_device_is_zero() -> None:
    np.testing.assert_allclose(logit_offset(np.array([0, 1, 1, 0]), 2), 0, atol=1e-7)


def test_logit_offset_of_absent_class_is_lowest_and_finite() -> None:
    offset = logit_offset(np.array([0, 0, 0, 1]), 3)
    np.testing.assert_allclose(offset, np.log([4, 2, 1]) - np.log([4, 2, 1]).mean(), rtol=1e-6)
    assert offset.dtype == np.float32
