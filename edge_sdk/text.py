"""Texts to token ids, the same way in training and in inference.

The tokenizer's own truncation and padding are replaced: a text is cut at ``max_tokens``, a batch padded to its longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edge_sdk.errors import ModelFormatError

Ids = NDArray[np.int32]
_PAD_TOKENS = ("[PAD]", "<pad>")
_GROUP = 64  # texts encoded at once: encodings take about 100 times the memory of their ids


class TextEncoder:
    """The tokenizer of ``tokenizer.json``; ``ModelFormatError`` where its bytes are none. ``pad_id`` fills batches."""

    def __init__(self, tokenizer_json: bytes, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        except ValueError as error:
            raise ModelFormatError(f"tokenizer.json of {len(tokenizer_json)} bytes cannot be read: {error}") from error
        self.pad_id = _pad_id(self._tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text, special tokens included, at most ``max_tokens`` of them."""
        groups = (texts[start : start + _GROUP] for start in range(0, len(texts), _GROUP))
        return [
            np.array(encoding.ids, dtype=np.int32)
            for group in groups
            for encoding in self._tokenizer.encode_batch(list(group))
        ]


def pad(rows: Sequence[Ids], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, both int64 (rows, longest); the mask is 0 where ``pad_id`` fills."""
    shape = (len(rows), max(len(row) for row in rows))
    ids, mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask


def _pad_id(tokenizer: Tokenizer) -> int:
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    known = (tokenizer.token_to_id(token) for token in _PAD_TOKENS)
    return next((index for index in known if index is not None), 0)
