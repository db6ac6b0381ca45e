"""Runs one ONNX model: predictions, and measurements of its accuracy and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data import Examples
from edge_sdk.data.arrays import array_examples
from edge_sdk.data.batches import EncodedExamples, encode_examples
from edge_sdk.data.examples import IMAGE_AXES
from edge_sdk.decoding import brief
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ConfigurationError, DataFormatError, ModelFormatError
from edge_sdk.inference.writing import answer, continuation
from edge_sdk.protocol.graphs import DECODER_INPUT, IGNORED, INPUTS, LOGITS
from edge_sdk.text import Ids, TextEncoder, pad, plain_text

if TYPE_CHECKING:
    import onnxruntime as ort

Given: TypeAlias = Sequence[str] | NDArray[np.floating[Any]] | NDArray[np.uint8]
"""What to predict for: texts, or one array of windows (n, steps, channels) or images (n, height, width, channels)."""

_ASKED = {
    ModelTask.TEXT_CLASSIFICATION: "predict with texts",
    ModelTask.TOKEN_CLASSIFICATION: "tag",
    ModelTask.TEXT_GENERATION: "generate",
    ModelTask.TEXT2TEXT_GENERATION: "generate",
    ModelTask.IMAGE_CLASSIFICATION: "predict with an array",
    ModelTask.TIME_SERIES_CLASSIFICATION: "predict with an array",
}
"""How to ask a model of each task."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest label of a text, word, window or image, and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """How a model does on examples, each run by itself: the share of targets that it got right, and the median latency.

    A target is an example's label, a word's tag, or the token that follows.
    """

    samples: int
    accuracy: float
    latency_ms: float


class Engine:
    """The model in ``model_path``, with ``labels`` in the order of its logits.

    ``tokenizer_json`` is empty for a model of images or windows. ``providers`` are those of
    :func:`edge_sdk.sessions.open_session`. ``pixel_mean`` and ``pixel_std`` have to be those that the model was trained
    with. Raises ``ModelFormatError`` if the model or the tokenizer cannot be loaded.
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
        """The shape of an image (channels, height, width) or window (steps, channels), empty for texts.

        ``None`` in it stands for any size.
        """
        if self._encoder is not None:
            return ()
        return tuple(size if isinstance(size, int) else None for size in self._session.get_inputs()[0].shape[1:])

    @cached_property
    def task(self) -> ModelTask:
        """The model's task, inferred from its graph's inputs and outputs."""
        if self._encoder is None:
            is_image = len(self.input_shape) == IMAGE_AXES - 1
            return ModelTask.IMAGE_CLASSIFICATION if is_image else ModelTask.TIME_SERIES_CLASSIFICATION
        if any(given.name == DECODER_INPUT for given in self._session.get_inputs()):
            return ModelTask.TEXT2TEXT_GENERATION
        if not self._labels:
            return ModelTask.TEXT_GENERATION
        return ModelTask.TEXT_CLASSIFICATION if self._tried().ndim == 2 else ModelTask.TOKEN_CLASSIFICATION

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The likeliest label of each text; they run one by one, so memory does not grow with their number.

        Raises ``ModelFormatError`` if the model has another number of labels, ``ConfigurationError`` if it is for
        another task, ``DataFormatError`` for a text without a token.
        """
        encoder = self._encoder_for("label texts", ModelTask.TEXT_CLASSIFICATION)
        rows = encoder.encode(_texts(texts))
        if empty := [number for number, ids in enumerate(rows, start=1) if not len(ids)]:
            raise DataFormatError(f"number {empty[0]} of the texts has no token in this model; leave it out")
        return [self._prediction(self._token_inputs([ids])) for ids in rows]

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[Prediction]]:
        """The likeliest tag of each word of each sentence. A sentence that is too long for the model is split.

        Raises as :meth:`predict`, and ``DataFormatError`` for a word without a token.
        """
        encoder = self._encoder_for("tag words", ModelTask.TOKEN_CLASSIFICATION)
        return [self._tags(encoder, words) for words in [_texts(sentence) for sentence in sentences]]

    def generate(self, texts: Sequence[str], max_new_tokens: int) -> list[str]:
        """A continuation of each text, or an answer to it, by greedy decoding: at most ``max_new_tokens`` tokens.

        Raises as :meth:`predict`, and ``DataFormatError`` for a text that leaves no room for a continuation.
        """
        encoder = self._encoder_for("write", ModelTask.TEXT_GENERATION, ModelTask.TEXT2TEXT_GENERATION)
        write = continuation if self.task is ModelTask.TEXT_GENERATION else answer
        return [write(self._logits, encoder, text, max_new_tokens) for text in _texts(texts)]

    def predict_arrays(self, values: NDArray[np.floating[Any]] | NDArray[np.uint8]) -> list[Prediction]:
        """The likeliest label of each window or image, of the shapes and types that examples have.

        Raises as :meth:`predict`, and ``DataFormatError`` for values of another shape or type.
        """
        if self._encoder is not None:
            raise self._wrong_task("label arrays")
        if values.shape[:1] == (0,):
            return []
        encoded = self._encoded(array_examples("what is asked", values, np.zeros(values.shape[:1], dtype=np.int64)))
        return [self._prediction(encoded.batch_of(np.array([index])).inputs) for index in range(len(values))]

    def measure(self, examples: Examples, ending: Event | None = None) -> Measurement:
        """Run each of ``examples``, at least one, by itself. Tokenising is not timed.

        Once ``ending`` is set, the rest is left out.
        """
        encoded = self._encoded(examples)
        right, counted, times_ms = 0, 0, []
        for index in range(len(encoded)):
            batch = encoded.batch_of(np.array([index]))
            started_s = time.perf_counter()
            logits = self._run(batch.inputs)
            times_ms.append(1000 * (time.perf_counter() - started_s))
            counts, hits = _hits(logits, batch.targets)
            right, counted = right + hits, counted + counts
            if ending is not None and ending.is_set():
                break
        return Measurement(len(times_ms), right / counted, statistics.median(times_ms))

    def try_out(self) -> None:
        """Run the model once on made-up input; ``ModelFormatError`` if that fails, or gives no finite logits.

        As where a half-precision model overflows on this device's accelerator. It would answer with the first label.
        """
        if not np.isfinite(self._tried().max(axis=-1)).all():
            raise ModelFormatError("the model gives logits that are not finite; release another")

    def _tried(self) -> NDArray[np.float32]:
        """The logits for two tokens of text, or for an image or window of zeros."""
        if self._encoder is not None:
            return self._logits({given.name: np.ones((1, 2), dtype=np.int64) for given in self._session.get_inputs()})
        (given,) = self._session.get_inputs()
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        return self._logits({given.name: np.zeros(shape, dtype=np.float32)})

    def _encoder_for(self, what: str, *tasks: ModelTask) -> TextEncoder:
        """The encoder of a model for one of ``tasks``."""
        if self._encoder is None or self.task not in tasks:
            raise self._wrong_task(what)
        return self._encoder

    def _wrong_task(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"the model cannot {what}: it is for {self.task.value}; use {_ASKED[self.task]}")

    def _token_inputs(self, row: Sequence[Ids]) -> dict[str, NDArray[Any]]:
        pad_id = 0 if self._encoder is None else self._encoder.pad_id
        return dict(zip(INPUTS[ModelTask.TEXT_CLASSIFICATION], pad(row, pad_id), strict=True))

    def _tags(self, encoder: TextEncoder, words: Sequence[str]) -> list[Prediction]:
        found: list[Prediction] = []
        while len(found) < len(words):
            rest = words[len(found) :]
            ((ids, firsts),) = encoder.encode_words([rest])
            logits = self._run(self._token_inputs([ids]))[0]
            starts = [position for position, word in enumerate(firsts) if word >= 0]
            read = [word for word in range(len(starts)) if firsts[starts[word]] == word]
            is_cut = len(ids) >= encoder.max_tokens
            if not read or (len(read) < len(rest) and not (is_cut and len(read) == len(starts))):
                raise DataFormatError(f"the word {rest[len(read)]!r} has no token in this model; leave it out")
            found += [self._likeliest(logits[starts[word]]) for word in read]
        return found

    def _encoded(self, examples: Examples) -> EncodedExamples:
        """``examples`` encoded as in training."""
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
        """The logits of one example in double precision."""
        return self._logits(inputs).astype(np.float64)

    def _logits(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The logits (1, ..., labels) of one example."""
        try:
            logits: NDArray[np.float32] = self._session.run([LOGITS], dict(inputs))[0]
        except self._failures as error:
            raise ModelFormatError(f"the model cannot be run: {brief(error)}") from error
        if self._labels and logits.shape[-1] != len(self._labels):
            raise ModelFormatError(
                f"the model gives {logits.shape[-1]} logits for {len(self._labels)} labels; release another"
            )
        return logits

    def _prediction(self, inputs: Mapping[str, NDArray[Any]]) -> Prediction:
        (logits,) = self._run(inputs)
        return self._likeliest(logits)

    def _likeliest(self, logits: NDArray[np.float64]) -> Prediction:
        powers = np.exp(logits - logits.max())
        best = int(powers.argmax())
        return Prediction(self._labels[best], float(powers[best] / powers.sum()))


def _texts(given: Iterable[str]) -> list[str]:
    """``given`` as plain strings; ``DataFormatError`` if it is a single string, or anything but strings."""
    if isinstance(given, str | bytes | Iterator) or not isinstance(given, Iterable):
        raise DataFormatError(f"one {type(given).__name__} is given; give a list of texts, or of words to tag")
    texts = [plain_text(text) for text in given]
    if None in texts:
        raise DataFormatError(f"number {texts.index(None) + 1} of the texts or words that are given is no text")
    return [text for text in texts if text is not None]


def _hits(logits: NDArray[np.float64], targets: NDArray[Any]) -> tuple[int, int]:
    """How many targets count, and for how many the likeliest is right; see :mod:`edge_sdk.protocol.graphs`."""
    is_text = targets.dtype.kind == "i"
    wanted = targets if is_text else targets.argmax(axis=-1)
    counts = targets != IGNORED if is_text else targets.any(axis=-1)
    return int(counts.sum()), int((counts & (logits.argmax(axis=-1) == wanted)).sum())


def _load(
    model_path: Path, threads: int, providers: Sequence[str] | None
) -> tuple[ort.InferenceSession, tuple[type[Exception], ...]]:
    """The session of the model, and what it raises. Imports onnxruntime here: an agent without a model never does."""
    from edge_sdk.sessions import FAILURES, open_session, session_options  # noqa: PLC0415

    try:
        return open_session(str(model_path), session_options(threads), providers), FAILURES
    except FAILURES as error:
        raise ModelFormatError(f"inference model {model_path} cannot be loaded: {error}") from error
