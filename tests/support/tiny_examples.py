"""A handful of examples for the tiny models of every task."""

from __future__ import annotations

import numpy as np

from coordinator.models.foundation import Foundation
from edge_sdk.data import ArrayExamples, Examples, PairedTexts, PlainTexts, TaggedExamples, TextExamples
from edge_sdk.elastic.submodel import ModelTask
from tests.support.tiny_models import LABELS, WORDS

COUNT = 8


def tiny_examples(foundation: Foundation) -> Examples:
    """Eight, of several lengths and all labels."""
    task, random = foundation.architecture.task, np.random.default_rng(0)
    words = [WORDS[start : start + 1 + start % 4] for start in range(COUNT)]
    labels = tuple(LABELS[index % len(LABELS)] for index in range(COUNT))
    match task:
        case ModelTask.TEXT_CLASSIFICATION:
            return TextExamples(tuple(map(" ".join, words)), labels)
        case ModelTask.TOKEN_CLASSIFICATION:
            tags = tuple(tuple(LABELS[(row + place) % 3] for place in range(len(own))) for row, own in enumerate(words))
            return TaggedExamples(tuple(words), tags)
        case ModelTask.TEXT_GENERATION:
            return PlainTexts(tuple(" ".join(own * 2) for own in words))
        case ModelTask.TEXT2TEXT_GENERATION:
            return PairedTexts(tuple(" ".join(own * 2) for own in words), tuple(" ".join(own[::-1]) for own in words))
        case ModelTask.TIME_SERIES_CLASSIFICATION:
            return ArrayExamples(random.normal(size=(COUNT, *foundation.input_shape)).astype(np.float32), labels)
        case _:
            channels, height, width = foundation.input_shape
            pixels = random.integers(0, 256, (COUNT, height, width, channels), dtype=np.uint8)
            return ArrayExamples(pixels, labels)
