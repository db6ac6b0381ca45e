from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenizers import Encoding, Tokenizer, models

from edge_sdk.data import (
    ArrayExamples,
    PairedTexts,
    PlainTexts,
    TaggedExamples,
    TextExamples,
    label_indices,
    tag_indices,
    write_examples,
)
from edge_sdk.data.batches import Batch, EncodedExamples, encode_examples
from edge_sdk.data.examples import task_of
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import DataFormatError, ModelFormatError
from edge_sdk.protocol.graphs import IGNORED
from edge_sdk.text import TextEncoder
from edge_sdk.training.calibration import logit_offset
from edge_sdk.training.runtime import examples_of
from tests.support import logistic_graph
from tests.support.logistic_graph import LABELS, WORDS, examples, tokenizer_json

TAGS = ("O", "PLACE")


def encoded(count: int = 20, max_tokens: int = 16) -> EncodedExamples:
    return encode_examples(examples(count, seed=1), LABELS, tokenizer_json=tokenizer_json(), max_tokens=max_tokens)


def rows_of(batches: list[Batch]) -> list[tuple[tuple[int, ...], int]]:
    """(token ids, label) of each example of classification batches."""
    return [
        (tuple(ids[mask == 1].tolist()), int(target.argmax()))
        for batch in batches
        for ids, mask, target in zip(*batch.inputs.values(), batch.targets, strict=True)
    ]


def all_of(data: EncodedExamples) -> Batch:
    """Every example in its own order."""
    return data.batch_of(np.arange(len(data)))


def subword_tokenizer_json() -> bytes:
    """``[CLS] pieces [SEP]``; the word "un" is two pieces, "unseen" three."""
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "u", "##n", "##seen"))}
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pieces.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    special = {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    return msgspec.json.encode(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": pieces,
                "pair": pieces,
                "special_tokens": special,
            },
            "model": {
                "type": "WordPiece",
                "vocab": vocabulary,
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 20,
            },
        }
    )


def test_batches_hold_every_example_once_padded_to_their_longest() -> None:
    data = encoded(21)
    batches = list(data.batches(8, seed=4, epoch=0))
    assert [len(batch.targets) for batch in batches] == [8, 8, 5]
    assert sorted(rows_of(batches)) == sorted(rows_of([all_of(data)]))
    for batch in batches:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert (ids.dtype, mask.dtype, batch.targets.dtype) == (np.int64, np.int64, np.float32)
        assert mask.sum(axis=1).max() == ids.shape[1]
        assert (ids[mask == 0] == WORDS.index("[PAD]")).all()


def test_batches_have_the_labels_of_their_texts() -> None:
    own, data = examples(20, seed=1), encoded()
    rows = TextEncoder(tokenizer_json(), 16).encode(own.texts)
    expected = [(tuple(row.tolist()), LABELS.index(label)) for row, label in zip(rows, own.labels, strict=True)]
    assert sorted(rows_of(list(data.batches(6, seed=0, epoch=0)))) == sorted(expected)
    assert (all_of(data).targets.sum(axis=1) == 1).all()


def test_batches_of_an_epoch_repeat_with_its_seed_only() -> None:
    data = encoded()

    def order(seed: int, epoch: int) -> list[list[list[int]]]:
        return [batch.inputs["input_ids"].tolist() for batch in data.batches(4, seed, epoch)]

    assert order(4, 0) == order(4, 0)
    assert order(4, 0) != order(4, 1)
    assert order(4, 0) != order(5, 0)


def test_texts_are_cut_at_max_tokens() -> None:
    assert all_of(encoded(max_tokens=2)).inputs["input_ids"].shape == (20, 2)


class Tokenizing:
    """A tokenizer that notes how many characters it is given at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.given = tokenizer, list[int]()

    def encode_batch(self, texts: list[str] | list[list[str]], *, is_pretokenized: bool) -> list[Encoding]:
        self.given.append(sum(len(part) for text in texts for part in text))
        return self._tokenizer.encode_batch(texts, is_pretokenized=is_pretokenized)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> TextEncoder:
    made = TextEncoder(tokenizer_json(), 16)
    monkeypatch.setattr(made, "_tokenizer", Tokenizing(made._tokenizer))
    return made


def test_documents_take_no_more_memory_than_what_is_read_of_them(encoder: TextEncoder) -> None:
    """A tokenizer takes 140 bytes a character: 270 MiB for a document of 2 MB, of which 16 tokens are used."""
    rows = encoder.encode(["good film " * 2_000] * 200)
    assert {tuple(row) for row in rows} == {(WORDS.index("good"), WORDS.index("film")) * 8}
    assert max(encoder._tokenizer.given) <= 1 << 18
    assert sum(encoder._tokenizer.given) == 200 * 16 * 256


def test_words_of_a_book_take_no_more_memory_than_what_is_read_of_them(encoder: TextEncoder) -> None:
    ((row, firsts),) = encoder.encode_words([["good"] * 99_999 + ["x" * 99_999]])
    assert (row.tolist(), firsts.tolist()) == ([WORDS.index("good")] * 16, [*range(16)])
    assert encoder._tokenizer.given == [16 * len("good")]
    encoder.encode_words([["x" * 99_999]])
    assert encoder._tokenizer.given[1:] == [16 * 256]


def test_only_the_first_token_of_a_word_counts() -> None:
    sentences = TaggedExamples((("a", "unseen"), ("un", "a", "a")), (("O", "PLACE"), ("PLACE", "O", "O")))
    data = encode_examples(sentences, TAGS, tokenizer_json=subword_tokenizer_json(), max_tokens=16)
    batch = all_of(data)
    nothing, other, place = (0, 0), (1, 0), (0, 1)
    assert batch.inputs["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3], [2, 5, 6, 4, 4, 3]]
    assert [tuple(map(tuple, row)) for row in batch.targets.astype(int).tolist()] == [
        (nothing, other, place, nothing, nothing, nothing),
        (nothing, place, nothing, other, other, nothing),
    ]
    assert data.label_counts.tolist() == [3, 2]


def test_tags_of_words_beyond_max_tokens_do_not_count() -> None:
    sentences = TaggedExamples((("a", "a", "a", "a"),), (("O", "O", "PLACE", "PLACE"),))
    data = encode_examples(sentences, TAGS, tokenizer_json=subword_tokenizer_json(), max_tokens=4)
    assert all_of(data).targets.argmax(axis=2).tolist() == [[0, 0, 0, 0]]
    assert data.label_counts.tolist() == [2, 0]


def test_text_is_learnt_one_token_ahead() -> None:
    texts = PlainTexts(("good film the", "bad film"))
    batch = all_of(encode_examples(texts, (), tokenizer_json=tokenizer_json(), max_tokens=8))
    assert batch.inputs["input_ids"].tolist() == [[2, 7, 6], [4, 7, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets.tolist() == [[7, 6, IGNORED], [7, IGNORED, IGNORED]]
    assert batch.targets.dtype == np.int64


def test_texts_of_one_token_are_left_out() -> None:
    settings = {"tokenizer_json": tokenizer_json(), "max_tokens": 8}
    assert len(encode_examples(PlainTexts(("good", "bad film")), (), **settings)) == 1
    with pytest.raises(DataFormatError, match="none of the 1 texts has two tokens"):
        encode_examples(PlainTexts(("good",)), (), **settings)


def letters_tokenizer_json() -> bytes:
    """Of two letters; all else is no token, and nothing marks an end."""
    return Tokenizer(models.BPE({"[PAD]": 0, "a": 1, "b": 2}, [])).to_str().encode()


def test_labelled_texts_without_a_token_are_left_out() -> None:
    """A model cannot be run on none: one such example made a device decline each round, and refuse each release."""
    some = TextExamples(("good", "", "bad", "\t"), ("positive", "negative", "negative", "positive"))
    data = encode_examples(some, LABELS, tokenizer_json=tokenizer_json(), max_tokens=16)
    assert (len(data), data.label_counts.tolist()) == (2, [1, 1])
    assert [label for _, label in rows_of([all_of(data)])] == [LABELS.index("positive"), LABELS.index("negative")]
    with pytest.raises(DataFormatError, match="none of the 1 texts has a token"):
        encode_examples(some.take([1]), LABELS, tokenizer_json=tokenizer_json(), max_tokens=16)


def test_pairs_without_a_token_on_both_sides_are_left_out() -> None:
    settings = {"tokenizer_json": letters_tokenizer_json(), "max_tokens": 8}
    pairs = PairedTexts(("ab", "?", "b"), ("?", "a", "ba"))
    batch = all_of(encode_examples(pairs, (), **settings))
    assert (batch.inputs["input_ids"].tolist(), batch.targets.tolist()) == ([[2]], [[2, 1]])
    with pytest.raises(DataFormatError, match="none of the 2 pairs has a token in its source and its target"):
        encode_examples(pairs.take([0, 1]), (), **settings)


def test_sentences_without_a_tagged_token_are_left_out() -> None:
    settings = {"tokenizer_json": letters_tokenizer_json(), "max_tokens": 8}
    sentences = TaggedExamples((("?",), ("a",)), (("O",), ("PLACE",)))
    data = encode_examples(sentences, TAGS, **settings)
    assert (len(data), data.label_counts.tolist()) == (1, [0, 1])
    with pytest.raises(DataFormatError, match="none of the 1 sentences has a word that the model's tokenizer knows"):
        encode_examples(sentences.take([0]), TAGS, **settings)


def test_decoder_reads_the_target_one_token_late() -> None:
    pairs = PairedTexts(("good film the", "bad film"), ("film", "the bad film"))
    data = encode_examples(pairs, (), tokenizer_json=tokenizer_json(), max_tokens=8)
    batch = all_of(data)
    assert batch.inputs["input_ids"].tolist() == [[2, 7, 6], [4, 7, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.inputs["decoder_input_ids"].tolist() == [[0, 0, 0], [0, 6, 4]]
    assert batch.targets.tolist() == [[7, IGNORED, IGNORED], [6, 4, 7]]
    assert {values.dtype for values in (*batch.inputs.values(), batch.targets)} == {np.dtype(np.int64)}
    assert batch.count(ModelTask.TEXT2TEXT_GENERATION) == 4
    assert task_of(pairs) is ModelTask.TEXT2TEXT_GENERATION


@pytest.mark.parametrize("labels", [("still", "moving", "still"), (0, 1, 0)])
def test_windows_with_labels_or_their_indices(labels: tuple[str, ...] | tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=(3, 8, 2)).astype(np.float32)
    data = encode_examples(ArrayExamples(values, labels), ("still", "moving"))
    batch = data.batch_of(np.array([2, 1]))
    np.testing.assert_array_equal(batch.inputs["series"], values[[2, 1]])
    assert batch.targets.tolist() == [[1, 0], [0, 1]]
    assert data.label_counts.tolist() == [2, 1]


def test_images_are_scaled_and_normalised_by_channel() -> None:
    images = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    images[1, 2, 3] = (255, 51, 0)
    data = encode_examples(ArrayExamples(images, ("a", "b")), ("a", "b"))
    values = all_of(data).inputs["pixel_values"]
    assert (values.shape, values.dtype, values.flags.c_contiguous) == ((2, 3, 4, 5), np.float32, True)
    np.testing.assert_allclose(values[1, :, 2, 3], [1, -0.6, -1], rtol=1e-6)
    told = encode_examples(ArrayExamples(images, ("a", "b")), ("a", "b"), pixel_mean=(0, 0.2, 1), pixel_std=(1, 2, 4))
    np.testing.assert_allclose(all_of(told).inputs["pixel_values"][1, :, 2, 3], [1, 0, -0.25], atol=1e-7)


def test_examples_for_another_task_are_refused(tmp_path: Path) -> None:
    job = logistic_graph.training_job(tmp_path)
    windows = ArrayExamples(np.zeros((2, 8, 2), dtype=np.float32), (0, 1))
    job = msgspec.structs.replace(job, examples=str(write_examples(tmp_path / "windows", windows)))
    with pytest.raises(DataFormatError, match="for time-series-classification; the task needs text-classification"):
        examples_of(job)
    architecture = replace(job.architecture, task=ModelTask.TIME_SERIES_CLASSIFICATION)
    assert len(examples_of(msgspec.structs.replace(job, architecture=architecture))) == 2


def test_example_whose_label_is_not_of_the_task_is_told_by_its_row() -> None:
    with pytest.raises(DataFormatError, match=r"example 2 has another label than the task's, which are [a-z, ]+$"):
        label_indices(TextExamples(("a", "b"), ("positive", "neutral")), LABELS)
    with pytest.raises(DataFormatError, match="example 1 has another label"):
        label_indices(ArrayExamples(np.zeros((1, 1, 1), np.float32), (2,)), LABELS)
    with pytest.raises(DataFormatError, match="example 1 has another label"):
        tag_indices(TaggedExamples((("a", "b"),), (("O", "PERSON"),)), TAGS)


def test_tokenizer_that_is_none() -> None:
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json of 2 bytes"):
        TextEncoder(b"{}", 8)


def test_logit_offset_of_a_balanced_device_is_zero() -> None:
    np.testing.assert_allclose(logit_offset(np.array([2, 2])), 0, atol=1e-7)


def test_logit_offset_of_absent_class_is_lowest_and_finite() -> None:
    offset = logit_offset(np.array([3, 1, 0]))
    np.testing.assert_allclose(offset, np.log([4, 2, 1]) - np.log([4, 2, 1]).mean(), rtol=1e-6)
    assert offset.dtype == np.float32


def test_logit_offset_of_generated_text_is_none() -> None:
    assert logit_offset(np.zeros(0, dtype=np.int64)).shape == (0,)
