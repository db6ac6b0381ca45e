"""Predictions of one ONNX model on texts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data import TextExamples
from edge_sdk.errors import ModelFormatError
from edge_sdk.text import Ids, TextEncoder, pad

Ids64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The likeliest label of a text, and its probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """How a model does on labelled texts, each run alone: the share that it got right, and the median time of one."""

    samples: int
    accuracy: float
    latency_ms: float


class Engine:
    """The model in ``model_path`` with its tokenizer; ``labels`` in the order of its logits.

    Raises ``ModelFormatError`` where the model or the tokenizer cannot be loaded.
    """

    def __init__(
        self, model_path: Path, tokenizer_json: bytes, labels: Sequence[str], max_tokens: int, threads: int = 1
    ) -> None:
        self._labels = tuple(labels)
        self._encoder = TextEncoder(tokenizer_json, max_tokens)
        self._run = _load(model_path, threads)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """The likeliest label of each text, run one by one: memory does not grow with their number.

        Raises ``ModelFormatError`` where the model has another number of labels.
        """
        return [self._prediction(ids) for ids in self._encoder.encode(texts)]

    def measure(self, examples: TextExamples) -> Measurement:
        """Run each of ``examples``, of which there must be one, alone, tokenising included."""
        right, times_ms = 0, []
        for text, label in zip(examples.texts, examples.labels, strict=True):
            started_s = time.perf_counter()
            right += self.predict([text])[0].label == label
            times_ms.append(1000 * (time.perf_counter() - started_s))
        return Measurement(len(examples), right / len(examples), statistics.median(times_ms))

    def _prediction(self, ids: Ids) -> Prediction:
        logits = self._run(*pad([ids], self._encoder.pad_id))[0].astype(np.float64)  # (labels,)
        if logits.shape != (len(self._labels),):
            raise ModelFormatError(
                f"the model gives {logits.size} logits for {len(self._labels)} labels; release another"
            )
        powers = np.exp(logits - logits.max())
        best = int(powers.argmax())
        return Prediction(self._labels[best], float(powers[best] / powers.sum()))


def _load(model_path: Path, threads: int) -> Callable[[Ids64, Ids64], NDArray[np.float32]]:
    """The model as a function of token ids and mask; an agent that has no model yet never loads onnxruntime."""
    import onnxruntime as ort  # noqa: PLC0415
    from onnxruntime.capi import onnxruntime_pybind11_state as failures  # noqa: PLC0415

    unreadable = (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NoSuchFile,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # keeps a plan and its memory for every shape of batch
    try:
        session = ort.InferenceSession(str(model_path), options, ["CPUExecutionProvider"])
    except unreadable as error:
        raise ModelFormatError(f"inference model {model_path} cannot be loaded: {error}") from error
    return lambda ids, mask: session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
