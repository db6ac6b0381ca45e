"""Labelled texts as batches of numbers: the same seed gives the same batches on every device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data import TextExamples, label_indices
from edge_sdk.text import Ids, TextEncoder, pad


@dataclass(frozen=True, slots=True)
class Batch:
    """``input_ids`` and ``attention_mask`` (batch, tokens) and ``labels`` (batch,), all int64."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """Token ids of each example, and the index of its label, int64 (examples,); ``pad_id`` fills batches."""

    rows: list[Ids]
    labels: NDArray[np.int64]
    pad_id: int

    def batches(self, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
        """One epoch, in an order that ``seed`` and ``epoch`` fix; the last batch may be short."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self.rows))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield Batch(*pad([self.rows[index] for index in chosen], self.pad_id), self.labels[chosen])


def encode_examples(
    examples: TextExamples, labels: Sequence[str], tokenizer_json: bytes, max_tokens: int
) -> EncodedExamples:
    """Tokenise once, before training; ``DataFormatError`` for a label that is not in ``labels``."""
    indices = label_indices(examples, labels)
    encoder = TextEncoder(tokenizer_json, max_tokens)
    return EncodedExamples(encoder.encode(examples.texts), indices, encoder.pad_id)


def logit_offset(indices: NDArray[np.int64], labels: int) -> NDArray[np.float32]:
    """The logarithm of this device's smoothed class prior, centred; float32 (labels,).

    Added to the logits in the loss alone, so that a device with few classes does not make the model forget the others:
    logit adjustment (Menon et al. 2021, arXiv 2007.07314, eq. 10), with a device's own prior (FedLC, arXiv 2209.00189).
    """
    counts = np.bincount(indices, minlength=labels)
    log_prior = np.log((counts + 1) / (len(indices) + labels))
    return np.asarray(log_prior - log_prior.mean(), dtype=np.float32)
