"""Examples as batches of numbers, for every task: the same seed gives the same batches on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.examples import (
    IMAGE_AXES,
    ArrayExamples,
    Examples,
    PairedTexts,
    PlainTexts,
    TaggedExamples,
    TextExamples,
    label_indices,
    pixel_values,
    tag_indices,
    task_of,
)
from edge_sdk.data.images import IMAGE_CHANNELS, fit_images
from edge_sdk.data.mapped import let_go
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import DataFormatError, NothingToLearnError
from edge_sdk.protocol.graphs import DECODER_INPUT, IGNORED, INPUTS
from edge_sdk.text import Ids, TextEncoder, pad

Inputs = dict[str, NDArray[Any]]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step feeds a training graph, see :mod:`edge_sdk.protocol.graphs`: ``inputs`` by name, and ``targets``."""

    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[Any]

    def count(self, task: ModelTask) -> int:
        """The number of targets that the loss averages over: examples, tagged words, or following tokens."""
        if task.generates:
            return int((self.targets >= 0).sum())
        return round(float(self.targets.sum()))

    def split(self, size: int) -> Iterator[Batch]:
        """The same examples in batches of at most ``size``."""
        for start in range(0, len(self.targets), size):
            part = slice(start, start + size)
            yield Batch({name: values[part] for name, values in self.inputs.items()}, self.targets[part])


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Encoded examples; ``batch_of`` makes a batch of those at given indices.

    ``label_counts`` (labels,) is how often each label occurs; empty for tasks that generate text. ``lengths``
    (examples,) are in tokens; for arrays they are all 1.
    """

    lengths: Indices
    label_counts: Indices
    batch_of: Callable[[Indices], Batch]

    def __len__(self) -> int:
        return len(self.lengths)

    def by_length(self, batch_size: int) -> Iterator[Batch]:
        """Every example once, sorted by length, shortest first, so that padding costs little."""
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield self.batch_of(order[start : start + batch_size])

    def batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
        """One epoch, in an order that ``seed`` and ``epoch`` fix; the last batch may be short."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        for start in range(0, len(order), batch_size):
            yield self.batch_of(order[start : start + batch_size])


def encode_examples(
    examples: Examples,
    labels: Sequence[str],
    *,
    tokenizer_json: bytes = b"",
    max_tokens: int = 0,
    pixel_mean: Sequence[float] = (0.5,),
    pixel_std: Sequence[float] = (0.5,),
    input_shape: tuple[int, ...] = (),
) -> EncodedExamples:
    """Encode ``examples`` for a model. Texts are tokenised now, arrays are converted batch by batch.

    A text is cut to ``max_tokens`` tokens. ``input_shape`` is that of
    :class:`edge_sdk.elastic.submodel.Architecture`; larger images are resized to it.
    Raises ``DataFormatError`` for a label that is not in ``labels`` and for arrays that do not fit,
    ``NothingToLearnError`` if no example has a token to learn, ``ModelFormatError`` for a bad tokenizer,
    ``ConfigurationError`` if images have to be resized without Pillow.
    """
    match examples:
        case TextExamples():
            return _labelled_texts(examples, labels, TextEncoder(tokenizer_json, max_tokens))
        case TaggedExamples():
            return _tagged(examples, labels, TextEncoder(tokenizer_json, max_tokens))
        case PlainTexts():
            return _plain_texts(examples, TextEncoder(tokenizer_json, max_tokens))
        case PairedTexts():
            return _paired_texts(examples, TextEncoder(tokenizer_json, max_tokens))
        case ArrayExamples():
            fit = _fit(examples.values, input_shape or _shape_of(examples.values))
            return _arrays(examples, labels, fit, partial(pixel_values, mean=pixel_mean, std=pixel_std))


def _labelled_texts(examples: TextExamples, labels: Sequence[str], encoder: TextEncoder) -> EncodedExamples:
    """Labelled texts; those without any token are left out, such as an empty one for GPT-2's tokenizer."""
    indices = label_indices(examples, labels)
    kept = [(row, index) for row, index in zip(encoder.encode(examples.texts), indices, strict=True) if len(row)]
    if not kept:
        raise NothingToLearnError(f"none of the {len(examples)} texts has a token; nothing can be learnt from them")
    rows, indices = [row for row, _ in kept], np.array([index for _, index in kept])

    def batch_of(chosen: Indices) -> Batch:
        return Batch(
            _token_inputs([rows[index] for index in chosen], encoder.pad_id), _one_hot(indices[chosen], labels)
        )

    return EncodedExamples(_lengths(rows), _counts(indices, labels), batch_of)


def _tagged(examples: TaggedExamples, labels: Sequence[str], encoder: TextEncoder) -> EncodedExamples:
    """Tagged sentences; only the first token of each word is a target. Those without any are left out."""
    by_word = tag_indices(examples, labels)
    found = [
        (row, np.where(word < 0, -1, own[word]))
        for (row, word), own in zip(encoder.encode_words(examples.sentences), by_word, strict=True)
        if (word >= 0).any()
    ]
    if not found:
        raise NothingToLearnError(f"none of the {len(examples)} sentences has a word that the model's tokenizer knows")
    rows, tags = zip(*found, strict=True)

    def batch_of(chosen: Indices) -> Batch:
        padded, _ = pad([tags[index] for index in chosen], -1)
        return Batch(_token_inputs([rows[index] for index in chosen], encoder.pad_id), _one_hot(padded, labels))

    return EncodedExamples(_lengths(rows), _counts(np.concatenate(tags), labels), batch_of)


def _plain_texts(examples: PlainTexts, encoder: TextEncoder) -> EncodedExamples:
    """Texts to continue; those of a single token, after which nothing follows, are left out."""
    rows = [row for row in encoder.encode(examples.texts) if len(row) > 1]
    if not rows:
        raise NothingToLearnError(f"none of the {len(examples)} texts has two tokens; nothing can be learnt from them")

    def batch_of(chosen: Indices) -> Batch:
        inputs = _token_inputs([rows[index] for index in chosen], encoder.pad_id)
        following, _ = pad([rows[index][1:] for index in chosen], IGNORED)
        return Batch(inputs, np.pad(following, ((0, 0), (0, 1)), constant_values=IGNORED))

    return EncodedExamples(_lengths(rows), np.zeros(0, dtype=np.int64), batch_of)


def _paired_texts(examples: PairedTexts, encoder: TextEncoder) -> EncodedExamples:
    """Texts with answers; the decoder reads the answer shifted right by a padding token, as T5's (arXiv 1910.10683).

    Pairs are left out of which a text has no token: there is nothing to read, or nothing to answer.
    """
    encoded = zip(encoder.encode(examples.sources), encoder.encode(examples.targets), strict=True)
    pairs = [pair for pair in encoded if all(map(len, pair))]
    if not pairs:
        raise NothingToLearnError(f"none of the {len(examples)} pairs has a token in its source and its target")
    sources, targets = zip(*pairs, strict=True)
    late = [np.concatenate(([encoder.pad_id], row[:-1])) for row in targets]

    def batch_of(chosen: Indices) -> Batch:
        inputs = _token_inputs([sources[index] for index in chosen], encoder.pad_id)
        inputs[DECODER_INPUT], _ = pad([late[index] for index in chosen], encoder.pad_id)
        return Batch(inputs, pad([targets[index] for index in chosen], IGNORED)[0])

    return EncodedExamples(_lengths(sources), np.zeros(0, dtype=np.int64), batch_of)


def _arrays(
    examples: ArrayExamples, labels: Sequence[str], fit: Callable[..., Any], as_pixels: Callable[..., Array]
) -> EncodedExamples:
    task, indices = task_of(examples), label_indices(examples, labels)
    (name,) = INPUTS[task]

    def batch_of(chosen: Indices) -> Batch:
        values = fit(examples.values[chosen])
        let_go(examples.values)
        inputs = {name: as_pixels(values) if task is ModelTask.IMAGE_CLASSIFICATION else values}
        return Batch(inputs, _one_hot(indices[chosen], labels))

    return EncodedExamples(np.ones_like(indices), _counts(indices, labels), batch_of)


def _fit(values: NDArray[Any], wanted: tuple[int, ...]) -> Callable[[Any], Any]:
    """How to convert such ``values`` to the shape ``wanted``; ``DataFormatError`` if that is impossible."""
    shape = _shape_of(values)
    if shape == wanted:
        return lambda given: given
    sizes = " x ".join(map(str, shape)), " x ".join(map(str, wanted))
    if values.ndim != IMAGE_AXES:
        raise DataFormatError("windows of {} (steps x channels) cannot be given to a model of {}".format(*sizes))
    if not {shape[0], wanted[0]} <= IMAGE_CHANNELS:
        raise DataFormatError("images of {} (channels x height x width) do not fit the model's {}".format(*sizes))
    if shape[1] < wanted[1] or shape[2] < wanted[2]:
        raise DataFormatError(
            "images of {} (channels x height x width) are smaller than the model's {}; keep larger ones: image_size, "
            "--image-size".format(*sizes)
        )
    return partial(fit_images, shape=wanted)


def _shape_of(values: NDArray[Any]) -> tuple[int, ...]:
    """The shape of one window (steps, channels) or of one image (channels, height, width)."""
    shape = values.shape[1:]
    return (shape[2], shape[0], shape[1]) if values.ndim == IMAGE_AXES else shape


def _lengths(rows: Sequence[Ids]) -> Indices:
    return np.array([len(row) for row in rows], dtype=np.int64)


def _token_inputs(rows: Sequence[Ids], pad_id: int) -> Inputs:
    return dict(zip(INPUTS[ModelTask.TEXT_CLASSIFICATION], pad(rows, pad_id), strict=True))


def _one_hot(indices: Indices, labels: Sequence[str]) -> Array:
    """One-hot rows, float32 (..., labels); all zeros for the index -1."""
    return np.asarray(indices[..., None] == np.arange(len(labels)), dtype=np.float32)


def _counts(indices: Indices, labels: Sequence[str]) -> Indices:
    return np.bincount(indices[indices >= 0], minlength=len(labels))
