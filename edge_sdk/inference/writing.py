"""Greedy decoding: a model that writes adds the likeliest token again and again, until one that ends the text.

The graph has no key-value cache, so each token costs as much as reading all tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import DataFormatError
from edge_sdk.protocol.graphs import DECODER_INPUT, INPUTS
from edge_sdk.text import TextEncoder, pad

Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]
"""A model's logits (1, tokens, vocabulary) for the inputs of one text."""


def continuation(run: Run, encoder: TextEncoder, text: str, max_new_tokens: int) -> str:
    """What a decoder writes after ``text``, at most ``max_new_tokens`` tokens.

    Raises ``DataFormatError`` if the text is empty or leaves no room for a continuation.
    """
    opening, closing = encoder.encode_open(text)
    room = encoder.max_tokens - len(opening)
    if not opening or room < 1:
        raise DataFormatError(
            f"a text of {len(text)} characters is {len(opening)} tokens, of at most {encoder.max_tokens} with what "
            "follows; give one with at least a token that leaves room"
        )
    ends = encoder.end_ids.union(closing[:1])
    written = _written(lambda ids: run(_inputs(opening + ids)), ends, min(max_new_tokens, room))
    return encoder.decode(opening + written).removeprefix(encoder.decode(opening))


def answer(run: Run, encoder: TextEncoder, text: str, max_new_tokens: int) -> str:
    """What an encoder-decoder writes for ``text``, at most ``max_new_tokens`` tokens; a text too long for it is cut."""
    words, closing = encoder.encode_open(text)
    source, ends = _inputs(words + closing), encoder.end_ids.union(closing[:1])

    def after(ids: list[int]) -> NDArray[np.float32]:
        return run(source | {DECODER_INPUT: np.array([[encoder.pad_id, *ids]], dtype=np.int64)})

    return encoder.decode(_written(after, ends, min(max_new_tokens, encoder.max_tokens)))


def _written(
    after: Callable[[list[int]], NDArray[np.float32]], ends: AbstractSet[int], max_new_tokens: int
) -> list[int]:
    ids: list[int] = []
    while len(ids) < max_new_tokens:
        following = int(after(ids)[0, -1].argmax())
        if following in ends:
            break
        ids.append(following)
    return ids


def _inputs(ids: Sequence[int]) -> dict[str, NDArray[Any]]:
    row = np.array(ids, dtype=np.int32)
    return dict(zip(INPUTS[ModelTask.TEXT_GENERATION], pad([row], 0), strict=True))
