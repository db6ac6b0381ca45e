"""The interface of a training graph: what the coordinator names in it when it compiles, and a device feeds and reads.

    inputs    those of the model's task, ``targets``, ``logit_offset``, and every parameter of the submodel; where
              that is a table which ids are only looked up in, ``rows.<ids>.<parameter>`` as well
    outputs   ``loss`` (), ``logits``, and ``grad.<parameter>`` for every parameter that is trained

The loss is the mean over all examples of the cross-entropy of ``logits + logit_offset`` against ``targets``:

    classification          targets float32 (batch, labels), each row a distribution over the labels: one label, or what
                            a teacher thinks, or a mixture of both
    token classification    the same, (batch, tokens, labels); a row of zeros is a token that does not count
    text generation         targets int64 (batch, tokens): the token that follows, or ``IGNORED``; no ``logit_offset``
    text-to-text            the same, (batch, target tokens)

``rows.<ids>.<parameter>``, int64 and of the shape of ``<ids>``, says which of the rows that are fed for ``<parameter>``
is each id's. All of them may be fed, in their order, and then the places are the ids.

``logits`` has the targets' shape, with the vocabulary in the place of the labels where text is generated, and is
without the offset.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edge_sdk.elastic.submodel import ModelTask

LOSS = "loss"
LOGITS = "logits"
GRADIENT = "grad."
TARGETS = "targets"
LOGIT_OFFSET = "logit_offset"
ROWS = "rows."
IGNORED = -100
"""The target of a token after which nothing is to be learnt."""

_TEXT = ("input_ids", "attention_mask")
DECODER_INPUT = "decoder_input_ids"
INPUTS: dict[ModelTask, tuple[str, ...]] = {
    ModelTask.TEXT_CLASSIFICATION: _TEXT,
    ModelTask.TOKEN_CLASSIFICATION: _TEXT,
    ModelTask.TEXT_GENERATION: _TEXT,
    ModelTask.TEXT2TEXT_GENERATION: (*_TEXT, DECODER_INPUT),
    ModelTask.IMAGE_CLASSIFICATION: ("pixel_values",),
    ModelTask.TIME_SERIES_CLASSIFICATION: ("series",),
}
"""What a model is given: token ids and mask, int64 (batch, tokens), and what a decoder has written so far, int64
(batch, target tokens), the targets after a start token; images, float32 (batch, channels, height, width); windows of a
sensor's channels, float32 (batch, steps, channels)."""
TEXT_TASKS = frozenset(task for task, names in INPUTS.items() if names[0] == _TEXT[0])


class RowInput(NamedTuple):
    """What an input says the rows of: the input ``ids``, looked up in the parameter ``table``."""

    ids: str
    table: str

    @property
    def name(self) -> str:
        """The input's own."""
        return f"{ROWS}{self.ids}.{self.table}"


def row_inputs(names: Iterable[str]) -> dict[str, RowInput]:
    """Those of a graph's inputs that say rows, by name.

    >>> row_inputs(["input_ids", "rows.input_ids.model.embed_tokens.weight"])
    {'rows.input_ids.model.embed_tokens.weight': RowInput(ids='input_ids', table='model.embed_tokens.weight')}
    """
    split = {name: name.removeprefix(ROWS).partition(".") for name in names if name.startswith(ROWS)}
    return {name: RowInput(ids, table) for name, (ids, _, table) in split.items()}
