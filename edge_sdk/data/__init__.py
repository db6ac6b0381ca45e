"""A device's examples: what it trains on, and a part that it holds out to judge models by.

    type             task                    columns
    TextExamples     text classification     text, label
    TaggedExamples   token classification    tokens, tags
    PlainTexts       text generation         text alone
    PairedTexts      text-to-text            source, target
    ArrayExamples    time series, images     x, y, or image, label

The columns are those of a CSV, JSONL, Parquet or .npz file, or of the other sources that :mod:`.owned` takes; they
determine the type. ``examples`` has the types, ``files`` reads and writes them, ``holdout`` splits them, ``store``
keeps those of a device while they grow.

Errors name the file, the row and the kind of value, but never quote an example, since errors end up in logs.
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
