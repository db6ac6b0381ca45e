"""Predictions of one ONNX model, and how well it does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data import ArrayExamples, Examples
from edge_sdk.data.batches import EncodedExamples, encode_examples
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ModelFormatError
from edge_sdk.protocol.graphs import DECODER_INPUT, IGNORED, INPUTS, LOGITS
from edge_sdk.text import TextEncoder, pad

if TYPE_CHECKING:
    import onnxruntime as ort

Given: TypeAlias = Sequence[str] | NDArray[np.float32] | NDArray[np.uint8]
"""What is asked about: texts; or windows (n, steps, channels) or images (n, height, width, channels), one array."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest label of a text, window or image, and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """How a model does on examples, each run alone: the share of targets it got right, and the median time of one.

    A target is an example's label, a word's tag, or the token that follows.
    """

    samples: int
    accuracy: float
    latency_ms: float


class Engine:
    """The model in ``model_path``; ``labels`` in the order of its logits; ``tokenizer_json`` is empty without texts.

    ``providers`` are those of :func:`edge_sdk.sessions.open_session`. ``pixel_mean`` and ``pixel_std`` have to be those
    that the model was trained with.
    Raises ``ModelFormatError`` where the model or the tokenizer cannot be loaded.
    """

    def __init__(
        self,
        model_path: Path,
        tokenizer_json: bytes,
        labels: Sequence[str],
        max_tokens: int,
        threads: int = 1,
        *,
        providers: Sequence[str] | None = None,
        pixel_mean: Sequence[float] = (0.5,),
        pixel_std: Sequence[float] = (0.5,),
    ) -> None:
        self._labels = tuple(labels)
        self._tokenizer_json, self._max_tokens = tokenizer_json, max_tokens
        self._pixel_mean, self._pixel_std = pixel_mean, pixel_std
        self._encoder = TextEncoder(tokenizer_json, max_tokens) if tokenizer_json else None
        self._session, self._failures = _load(model_path, threads, providers)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Of an image (channels, height, width) or window (steps, channels), ``None`` for any size; empty for texts."""
        if self._encoder is not None:
            return ()
        return tuple(size if isinstance(size, int) else None for size in self._session.get_inputs()[0].shape[1:])

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The likeliest label of each text, run one by one: memory does not grow with their number.

        Raises ``ModelFormatError`` where the model has another number of labels, or is for something else than texts.
        """
        if self._encoder is None:
            raise ModelFormatError("the model is not for texts: the release has no tokenizer")
        if any(given.name == DECODER_INPUT for given in self._session.get_inputs()):
            raise ModelFormatError("the model writes a text for a text; it has no label to answer with")
        names = INPUTS[ModelTask.TEXT_CLASSIFICATION]
        rows = ([ids] for ids in self._encoder.encode(texts))
        return [self._prediction(dict(zip(names, pad(row, self._encoder.pad_id), strict=True))) for row in rows]

    def predict_arrays(self, values: NDArray[np.float32] | NDArray[np.uint8]) -> list[Prediction]:
        """The likeliest label of each window or image, as :class:`edge_sdk.data.ArrayExamples` holds them.

        Raises ``ModelFormatError`` as :meth:`predict`, ``DataFormatError`` for values of another shape.
        """
        examples = ArrayExamples(values, (0,) * len(values))
        encoded = self._encoded(examples)
        return [self._prediction(encoded.batch_of(np.array([index])).inputs) for index in range(len(values))]

    def measure(self, examples: Examples) -> Measurement:
        """Run each of ``examples``, of which there must be one, alone; tokenising is not timed."""
        encoded = self._encoded(examples)
        right, counted, times_ms = 0, 0, []
        for index in range(len(encoded)):
            batch = encoded.batch_of(np.array([index]))
            started_s = time.perf_counter()
            logits = self._run(batch.inputs)
            times_ms.append(1000 * (time.perf_counter() - started_s))
            counts, hits = _hits(logits, batch.targets)
            right, counted = right + hits, counted + counts
        return Measurement(len(encoded), right / counted, statistics.median(times_ms))

    def try_out(self) -> None:
        """Run once, on two tokens of each text or on zeros; ``ModelFormatError`` where that fails."""
        if self._encoder is not None:
            self._run({given.name: np.ones((1, 2), dtype=np.int64) for given in self._session.get_inputs()})
        else:
            (given,) = self._session.get_inputs()
            shape = [size if isinstance(size, int) else 1 for size in given.shape]
            self._run({given.name: np.zeros(shape, dtype=np.float32)})

    def _encoded(self, examples: Examples) -> EncodedExamples:
        """As training encodes them."""
        fixed = [size for size in self.input_shape if size is not None]
        return encode_examples(
            examples,
            self._labels,
            tokenizer_json=self._tokenizer_json,
            max_tokens=self._max_tokens,
            pixel_mean=self._pixel_mean,
            pixel_std=self._pixel_std,
            input_shape=tuple(fixed) if len(fixed) == len(self.input_shape) else (),
        )

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        """The logits (1, ..., labels) of one example."""
        try:
            logits: NDArray[np.float32] = self._session.run([LOGITS], dict(inputs))[0]
        except self._failures as error:
            raise ModelFormatError(f"the model cannot be run: {str(error).splitlines()[0][:300]}") from error
        if self._labels and logits.shape[-1] != len(self._labels):
            raise ModelFormatError(
                f"the model gives {logits.shape[-1]} logits for {len(self._labels)} labels; release another"
            )
        return logits.astype(np.float64)

    def _prediction(self, inputs: Mapping[str, NDArray[Any]]) -> Prediction:
        (logits,) = self._run(inputs)
        if logits.ndim != 1:
            raise ModelFormatError(f"the model gives logits for each of {len(logits)} tokens, not one label for all")
        powers = np.exp(logits - logits.max())
        best = int(powers.argmax())
        return Prediction(self._labels[best], float(powers[best] / powers.sum()))


def _hits(logits: NDArray[np.float64], targets: NDArray[Any]) -> tuple[int, int]:
    """How many targets count, and of how many the likeliest is right; see :mod:`edge_sdk.protocol.graphs`."""
    is_text = targets.dtype.kind == "i"
    wanted = targets if is_text else targets.argmax(axis=-1)
    counts = targets != IGNORED if is_text else targets.any(axis=-1)
    return int(counts.sum()), int((counts & (logits.argmax(axis=-1) == wanted)).sum())


def _load(
    model_path: Path, threads: int, providers: Sequence[str] | None
) -> tuple[ort.InferenceSession, tuple[type[Exception], ...]]:
    """The model, and what it raises; an agent that has no model yet never loads onnxruntime."""
    from edge_sdk.sessions import FAILURES, open_session, session_options  # noqa: PLC0415

    try:
        return open_session(str(model_path), session_options(threads), providers), FAILURES
    except FAILURES as error:
        raise ModelFormatError(f"inference model {model_path} cannot be loaded: {error}") from error
