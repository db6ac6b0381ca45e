"""Texts and labels as padded batches of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.models.foundation import Foundation
from edge_sdk.text import TextEncoder, pad

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextBatch:
    """``input_ids`` and ``attention_mask`` int64 (batch, tokens), padded to the longest text; ``labels`` (batch,)."""

    input_ids: Integers
    attention_mask: Integers
    labels: Integers

    def feeds(self, labels: int) -> dict[str, NDArray[np.generic]]:
        """The batch inputs of a graph of ``labels`` classes, with no logit offset."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "labels": self.labels,
            "logit_offset": np.zeros(labels, dtype=np.float32),
        }


def text_batches(
    foundation: Foundation, texts: Sequence[str], labels: Sequence[int], *, max_tokens: int, batch_size: int = 32
) -> list[TextBatch]:
    """Tokenise ``texts``, cut each at ``max_tokens``, and batch texts of like length, so that padding costs little.

    ``labels[i]`` is the index of text ``i``'s class. The shortest texts come first.
    """
    encoder = TextEncoder(foundation.tokenizer_json, min(max_tokens, foundation.architecture.positions))
    rows = encoder.encode(texts)
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    return [
        TextBatch(
            *pad([rows[index] for index in chosen], encoder.pad_id),
            np.array([labels[index] for index in chosen], dtype=np.int64),
        )
        for chosen in _chunks(by_length, batch_size)
    ]


def _chunks(indices: list[int], size: int) -> Iterator[list[int]]:
    return (indices[start : start + size] for start in range(0, len(indices), size))
