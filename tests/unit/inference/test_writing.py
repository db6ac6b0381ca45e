"""What a model writes, and how it tags: by models whose next token and tag are known, with a real tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ConfigurationError, DataFormatError
from edge_sdk.inference.engine import Engine
from tests.support.table_model import table_model

WORDS = ["<pad>", "</s>", "one", "two", "three", "four", "un", "##known"]
END = 1
TAGS = ("even", "odd")
MAX_TOKENS = 6
Make = Callable[..., Engine]


def tokenizer(*, closes: bool) -> bytes:
    """One id a word, or pieces of it; ``closes`` ends each text with a token."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=WORDS[0]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if closes:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return made.to_str().encode()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(task: ModelTask, *, closes: bool = True, ends: bool = True) -> Engine:
        following = np.roll(np.eye(len(WORDS)), 1, axis=1)
        if ends:
            following[WORDS.index("four")] = np.eye(len(WORDS))[END]
        else:
            following[WORDS.index("four")] = following[WORDS.index("one")]
        following[0] = np.eye(len(WORDS))[WORDS.index("one")]
        labels = TAGS if task is ModelTask.TOKEN_CLASSIFICATION else ()
        table = np.eye(2)[np.arange(len(WORDS)) % 2] if labels else following
        (tmp_path / "model.onnx").write_bytes(table_model(task, table))
        return Engine(tmp_path / "model.onnx", tokenizer(closes=closes), labels, MAX_TOKENS)

    return made


@pytest.mark.parametrize("closes", [True, False])
def test_text_is_continued_to_its_end(make: Make, closes: bool) -> None:
    engine = make(ModelTask.TEXT_GENERATION, closes=closes)
    assert engine.task is ModelTask.TEXT_GENERATION
    assert engine.generate(["one", "two three", "four"], 64) == [" two three four", " four", ""]


def test_no_more_tokens_are_written_than_were_asked_for_or_fit(make: Make) -> None:
    engine = make(ModelTask.TEXT_GENERATION, ends=False)
    assert engine.generate(["one"], 2) == [" two three"]
    (written,) = engine.generate(["one two"], 64)
    assert len(written.split()) == MAX_TOKENS - 2


@pytest.mark.parametrize("text", ["", "one " * MAX_TOKENS])
def test_text_that_leaves_no_room_is_refused(make: Make, text: str) -> None:
    with pytest.raises(DataFormatError, match="at most 6 with what follows"):
        make(ModelTask.TEXT_GENERATION, closes=False).generate([text], 1)


def test_text_is_answered_by_an_encoder_and_a_decoder(make: Make) -> None:
    engine = make(ModelTask.TEXT2TEXT_GENERATION)
    assert engine.task is ModelTask.TEXT2TEXT_GENERATION
    assert engine.generate(["whatever", "one " * 40], 64) == ["one two three four"] * 2
    assert engine.generate(["whatever"], 3) == ["one two three"]


def test_words_are_tagged_by_their_first_piece_however_long_the_sentence(make: Make) -> None:
    engine = make(ModelTask.TOKEN_CLASSIFICATION)
    words = ["unknown", "one", "two", "three", "unknown", "four"] * 3
    (tags, none) = engine.tag([words, []])
    assert engine.task is ModelTask.TOKEN_CLASSIFICATION
    assert [tag.label for tag in tags] == ["even", "even", "odd", "even", "even", "odd"] * 3
    assert none == []
    assert all(0.5 < tag.probability < 1 for tag in tags)


@pytest.mark.parametrize("words", [["one", " "], [" ", "one"], ["one"] * 9 + [""]])
def test_word_without_a_token_is_refused_by_name(make: Make, words: list[str]) -> None:
    with pytest.raises(DataFormatError, match=r"the word ' ?' has no token"):
        make(ModelTask.TOKEN_CLASSIFICATION).tag([words])


def test_one_text_is_neither_words_nor_texts(make: Make) -> None:
    with pytest.raises(DataFormatError, match="one str is given; give a list of texts, or of words to tag"):
        make(ModelTask.TOKEN_CLASSIFICATION).tag(["one two"])
    with pytest.raises(DataFormatError, match="one str is given"):
        make(ModelTask.TEXT_GENERATION).generate("one two", 3)


@pytest.mark.parametrize(
    ("task", "wrong", "right"),
    [
        (ModelTask.TEXT_GENERATION, "predict", "generate"),
        (ModelTask.TEXT2TEXT_GENERATION, "tag", "generate"),
        (ModelTask.TOKEN_CLASSIFICATION, "predict", "tag"),
    ],
)
def test_model_of_another_task_says_how_to_ask_it(make: Make, task: ModelTask, wrong: str, right: str) -> None:
    engine = make(task)
    ask = {"predict": lambda: engine.predict(["one"]), "tag": lambda: engine.tag([["one"]])}[wrong]
    with pytest.raises(ConfigurationError, match=f"it is for {task.value}; use {right}"):
        ask()
