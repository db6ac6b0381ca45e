"""Texts to token ids, the same way in training and in inference.

The tokenizer's own truncation and padding are replaced: a text is cut at ``max_tokens``, a batch padded to its longest.
Before that, a text is cut where even the longest words give more tokens: a tokenizer takes 140 bytes for each character
that it is given, which of a long document is more than a device has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ModelFormatError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Ids = NDArray[np.int32]
_PAD_TOKENS = ("[PAD]", "<pad>")
_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_GROUP, _GROUP_CHARACTERS = 64, 1 << 18  # encoded at once: encodings take about 100 times the memory of their ids
_CHARACTERS_PER_TOKEN = 256  # of words there are 5 or so


class TextEncoder:
    """The tokenizer of ``tokenizer.json``; ``ModelFormatError`` where its bytes are none.

    ``pad_id`` fills batches; each of ``end_ids`` ends what a model writes.
    """

    def __init__(self, tokenizer_json: bytes, max_tokens: int) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - 6 MiB that an agent without a model does without

        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        except ValueError as error:
            raise ModelFormatError(f"tokenizer.json of {len(tokenizer_json)} bytes cannot be read: {error}") from error
        self.max_tokens = max_tokens
        self.pad_id = _pad_id(self._tokenizer)
        self._tokenizer.no_padding()
        known = (self._tokenizer.token_to_id(token) for token in _END_TOKENS)
        self.end_ids = frozenset(index for index in known if index is not None)
        self._tokenizer.enable_truncation(max_tokens)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text, special tokens included, at most ``max_tokens`` of them."""
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._encodings(texts)]

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[tuple[Ids, Ids]]:
        """As :meth:`encode`, of words; and for each token the word that it is the first of, or -1."""
        return [
            (np.array(encoding.ids, dtype=np.int32), _first_tokens(encoding.word_ids))
            for encoding in self._encodings(sentences, are_words=True)
        ]

    def encode_open(self, text: str) -> tuple[list[int], list[int]]:
        """The token ids of ``text``, and those of the special tokens that close it; together as :meth:`encode`."""
        (encoding,) = self._encodings([text])
        words = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
        end = words[-1] + 1 if words else len(encoding.ids)
        return encoding.ids[:end], encoding.ids[end:]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens left out."""
        return str(self._tokenizer.decode(list(ids)))

    def _encodings(self, texts: Sequence[str | Sequence[str]], *, are_words: bool = False) -> Iterator[Encoding]:
        for group in _groups(map(self._cut, texts)):
            yield from self._tokenizer.encode_batch(group, is_pretokenized=are_words)

    def _cut(self, text: str | Sequence[str]) -> str | list[str]:
        """The part of a text, or of a sentence's words, that its first ``max_tokens`` tokens are of."""
        most = _CHARACTERS_PER_TOKEN * self.max_tokens
        return text[:most] if isinstance(text, str) else [word[:most] for word in text[: self.max_tokens]]


def _groups(texts: Iterable[str | list[str]]) -> Iterator[list[str | list[str]]]:
    """``texts`` in groups that are small enough to be encoded at once."""
    group, characters = list[str | list[str]](), 0
    for text in texts:
        group.append(text)
        characters += len(text) if isinstance(text, str) else sum(map(len, text))
        if len(group) == _GROUP or characters > _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def plain_text(value: object) -> str | None:
    """A plain string, also of NumPy's or an enumeration's, which are strings of another type; ``None`` for all else.

    Half a surrogate pair is no text: neither a file nor a tokenizer takes it.
    """
    return str.__str__(value) if isinstance(value, str) and _SURROGATE.search(value) is None else None


def pad(rows: Sequence[Ids], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, both int64 (rows, longest); the mask is 0 where ``pad_id`` fills."""
    shape = (len(rows), max(len(row) for row in rows))
    ids, mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def _first_tokens(words: Sequence[int | None]) -> Ids:
    first = [-1 if word is None or word == last else word for last, word in pairwise((None, *words))]
    return np.array(first, dtype=np.int32)


def _pad_id(tokenizer: Tokenizer) -> int:
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    known = (tokenizer.token_to_id(token) for token in _PAD_TOKENS)
    return next((index for index in known if index is not None), 0)
