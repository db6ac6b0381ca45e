"""The coordinator's own examples as batches, and the inputs of a graph for one of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coordinator.models.foundation import Foundation
from edge_sdk.data import Examples, PairedTexts, PlainTexts, TaggedExamples
from edge_sdk.data.batches import Batch, encode_examples
from edge_sdk.data.examples import task_of
from edge_sdk.elastic.submodel import Architecture
from edge_sdk.errors import DataFormatError
from edge_sdk.protocol.graphs import LOGIT_OFFSET, TARGETS
from edge_sdk.protocol.messages import Recipe

_BATCH_SIZE = 32


def batches_of(
    foundation: Foundation, examples: Examples, recipe: Recipe, batch_size: int = _BATCH_SIZE
) -> list[Batch]:
    """All of ``examples``, prepared as a device prepares its own.

    Raises ``DataFormatError`` where they are for another task, or carry a label that the model has not.
    """
    task = foundation.architecture.task
    if (found := task_of(examples)) is not task:
        raise DataFormatError(f"the examples are for {found.value}, the model is for {task.value}; give others")
    encoded = encode_examples(
        examples,
        foundation.labels,
        tokenizer_json=foundation.tokenizer_json,
        max_tokens=min(recipe.max_tokens, foundation.architecture.positions),
        pixel_mean=recipe.pixel_mean,
        pixel_std=recipe.pixel_std,
        input_shape=foundation.architecture.input_shape,
    )
    return list(encoded.by_length(batch_size))


def labels_of(*examples: Examples) -> list[str]:
    """The labels that occur, sorted; none for examples of text generation."""
    labels = set[str]()
    for part in examples:
        if isinstance(part, TaggedExamples):
            labels.update(tag for tags in part.tags for tag in tags)
        elif not isinstance(part, PlainTexts | PairedTexts):
            labels.update(map(str, part.labels))
    return sorted(labels)


def feeds(batch: Batch, architecture: Architecture) -> dict[str, NDArray[np.generic]]:
    """The inputs of a training graph beside its parameters, with no logit offset."""
    offset = np.zeros(architecture.labels, dtype=np.float32)
    return {**batch.inputs, TARGETS: batch.targets, LOGIT_OFFSET: offset}
