"""What a device owns, trains on, and keeps some of to judge a model by.

    type             task                    file
    TextExamples     text classification     CSV or JSONL: text, label
    TaggedExamples   token classification    JSONL: tokens, tags
    PlainTexts       text generation         CSV or JSONL: text alone
    ArrayExamples    time series, images     .npz: x, y

A file says by itself which of them it holds. ``examples`` has the types, ``files`` reads and writes them.
"""

from edge_sdk.data.examples import (
    ArrayExamples,
    Examples,
    PlainTexts,
    TaggedExamples,
    TextExamples,
    label_indices,
    pixel_values,
    split_held_out,
    tag_indices,
)
from edge_sdk.data.files import read_examples, read_texts, write_examples

__all__ = [
    "ArrayExamples",
    "Examples",
    "PlainTexts",
    "TaggedExamples",
    "TextExamples",
    "label_indices",
    "pixel_values",
    "read_examples",
    "read_texts",
    "split_held_out",
    "tag_indices",
    "write_examples",
]
