"""The interface of a training graph: the names that the coordinator gives its inputs and outputs when it compiles it.

    inputs    those of the model's task, ``targets``, ``logit_offset``, and every parameter of the submodel; for a
              parameter that ids are only looked up in, ``rows.<ids>.<parameter>`` as well
    outputs   ``loss`` (), ``logits``, and ``grad.<parameter>`` for every parameter that is trained

The loss is the mean over all examples of the cross-entropy of ``logits + logit_offset`` against ``targets``:

    classification          targets float32 (batch, labels), each row a distribution over the labels: one label, or what
                            a teacher thinks, or a mixture of both
    token classification    the same, (batch, tokens, labels); a row of zeros is a token that does not count
    text generation         targets int64 (batch, tokens): the token that follows, or ``IGNORED``; no ``logit_offset``
    text-to-text            the same, (batch, target tokens)

``rows.<ids>.<parameter>``, int64 of the shape of ``<ids>``, is for each id the index of its row among the rows that are
fed for ``<parameter>``. If all rows are fed, in their order, these are the ids themselves.

``logits`` (batch, labels), (batch, tokens, labels), or (batch, tokens, vocabulary) if text is generated, are without
the offset.
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
"""The target of a token that is not to be learnt from."""

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
"""The inputs of a model by task: token ids and mask, int64 (batch, tokens); for a decoder also its targets, shifted
right by a start token, int64 (batch, target tokens); images, float32 (batch, channels, height, width); windows, float32
(batch, steps, channels)."""
TEXT_TASKS = frozenset(task for task, names in INPUTS.items() if names[0] == _TEXT[0])


class RowInput(NamedTuple):
    """An input that gives, for each of the input ``ids``, the index of its row among the rows fed for ``table``."""

    ids: str
    table: str

    @property
    def name(self) -> str:
        """The input's name."""
        return f"{ROWS}{self.ids}.{self.table}"


def row_inputs(names: Iterable[str]) -> dict[str, RowInput]:
    """Those of a graph's inputs that are row indices, by name.

    >>> row_inputs(["input_ids", "rows.input_ids.model.embed_tokens.weight"])
    {'rows.input_ids.model.embed_tokens.weight': RowInput(ids='input_ids', table='model.embed_tokens.weight')}
    """
    split = {name: name.removeprefix(ROWS).partition(".") for name in names if name.startswith(ROWS)}
    return {name: RowInput(ids, table) for name, (ids, _, table) in split.items()}
