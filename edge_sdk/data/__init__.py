"""What a device owns, trains on, and keeps some of to judge a model by.

    type             task                    columns
    TextExamples     text classification     text, label
    TaggedExamples   token classification    tokens, tags
    PlainTexts       text generation         text alone
    PairedTexts      text-to-text            source, target
    ArrayExamples    time series, images     x, y, or image, label

Columns are those of a CSV, JSONL, Parquet or .npz file, or of what :mod:`.owned` takes besides; they say by themselves
which type it is. ``examples`` has the types, ``files`` reads and writes them, ``holdout`` splits them, ``store`` keeps
those of a device while they grow.

What is wrong with examples is said by file, row and kind, never in their own words: errors end up in logs.
"""

from edge_sdk.data.examples import (
    ArrayExamples,
    Examples,
    PairedTexts,
    PlainTexts,
    TaggedExamples,
    TextExamples,
    label_indices,
    pixel_values,
    tag_indices,
)
from edge_sdk.data.files import map_examples, read_examples, read_texts, write_examples
from edge_sdk.data.holdout import split_held_out

__all__ = [
    "ArrayExamples",
    "Examples",
    "PairedTexts",
    "PlainTexts",
    "TaggedExamples",
    "TextExamples",
    "label_indices",
    "map_examples",
    "pixel_values",
    "read_examples",
    "read_texts",
    "split_held_out",
    "tag_indices",
    "write_examples",
]
