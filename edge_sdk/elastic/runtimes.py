"""The memory model of each runtime: what a process holds at its worst moments, and the constants for that.

The constants are for x86-64 Linux, fitted to the measurements in ``tests/unit/elastic/measured_training.csv`` and
``measured_prediction.csv``. Memory is resident memory (its peak is VmHWM); a value is a float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

MIB = 1 << 20
FLOAT_BYTES = 4
_ADAMW_COPIES = 4  # weight, gradient and two moments
_ADAMW_MOMENTS = 2


class Runtime(str, Enum):
    """What trains: onnxruntime with a training graph, or torch with a module built from a configuration."""

    ONNX = "onnx"
    TORCH = "torch"


@dataclass(frozen=True, slots=True)
class Kept:
    """How many arrays a layer keeps per token for its backward pass, by their size.

    ``hidden`` arrays have the hidden size, ``heads`` the size of all query heads together, ``ffn`` the FFN's width, and
    ``scores`` one entry per query head and token.
    """

    hidden: float
    heads: float
    ffn: float
    scores: float


@dataclass(frozen=True, slots=True)
class Work:
    """The values that a submodel holds in memory while a batch is trained.

    Parameters are ``trained``, ``frozen``, or frozen embeddings that are only ``looked_up``. Of the trained ones,
    ``embedded`` are embeddings; of all, ``in_layers`` lie in layers. ``activations`` are given per layer, ``logits``
    for the batch.
    """

    trained: int
    frozen: int
    looked_up: int
    embedded: int
    in_layers: int
    activations: Sequence[float]
    logits: int


@dataclass(frozen=True, slots=True)
class RuntimeCost:
    """Constants of one runtime. A "copy" of some parameters is an array of their size.

    Interpreter, libraries, tokenizer and graph take ``base_bytes`` in a process that trains, ``load_bytes`` in one
    before its first step, and ``inference_bytes`` in one that predicts. The latter holds ``inference_copies`` of all
    parameters, and ``inference_embedding_copies`` more of the embeddings.

    Of trained parameters there are ``state_copies`` when activations peak (weights, two moments, and the gradients that
    exist by then), and ``finish_copies`` while the update is written. Of frozen parameters there are ``load_copies``
    while they are read. Frozen embeddings take ``looked_up_copies`` afterwards; trained ones, whose gradient is dense,
    take ``embedding_copies`` beside the state. The layers of the largest nested submodel take ``nested_copies``.

    ``kept`` is what a layer keeps, by family, else under ``"gated"`` or ``""``. A layer whose weights are all frozen
    keeps ``frozen_share`` of that, and a layer that only runs forward holds ``forward_share`` of it. Logits take
    ``logit_copies`` when the backward pass begins.
    """

    base_bytes: int
    load_bytes: int
    inference_bytes: int
    state_copies: float
    finish_copies: float
    load_copies: float
    looked_up_copies: float
    embedding_copies: float
    nested_copies: float
    kept: Mapping[str, Kept]
    frozen_share: float
    forward_share: float
    logit_copies: float
    inference_copies: float
    inference_embedding_copies: float

    def training_bytes(
        self, work: Work, nested: Sequence[Work] = (), *, moments: int = _ADAMW_MOMENTS, is_summed: bool = False
    ) -> int:
        """The peak of a training process in bytes: the largest of these moments.

        1. Frozen parameters are read.
        2. A backward pass begins, with all activations and few gradients.
        3. A backward pass ends, with all gradients.
        4. A nested submodel runs beside the whole one's gradients, on copies of the parameters that it narrows.
        5. The update is written.

        The optimizer keeps ``moments`` arrays beside the weights; ``is_summed`` adds one for the sums of gradients.
        """
        buffer = self.nested_copies * max((prefix.in_layers for prefix in nested), default=0)
        buffer += (moments - _ADAMW_MOMENTS + is_summed) * work.trained
        peaks = [
            self.state_copies * work.trained + sum(work.activations) + self.logit_copies * work.logits + buffer,
            _ADAMW_COPIES * work.trained + max(work.activations) + buffer,
            *(_ADAMW_COPIES * work.trained + self._pass_of(prefix) + buffer for prefix in nested),
            self.finish_copies * work.trained,
        ]
        resident = work.frozen + self.looked_up_copies * work.looked_up + self.embedding_copies * work.embedded
        loading = work.trained + self.load_copies * (work.frozen + work.looked_up)
        return max(
            self.base_bytes + int(FLOAT_BYTES * (resident + max(peaks))),
            self.load_bytes + int(FLOAT_BYTES * loading),
        )

    def predicting_bytes(self, parameters: int, embeddings: int, running: float, *, quantised: bool) -> int:
        """The peak, in bytes, of a process that predicts one example at a time with ``running`` values in memory.

        ``quantised`` weights take a byte each, and those that inputs are multiplied with are stored a second time,
        packed for the processor.
        """
        copies = self.inference_copies * parameters + self.inference_embedding_copies * embeddings
        weights = copies + parameters - embeddings if quantised else FLOAT_BYTES * copies
        return self.inference_bytes + int(weights + FLOAT_BYTES * running)

    def _pass_of(self, prefix: Work) -> float:
        return prefix.trained + sum(prefix.activations) + self.logit_copies * prefix.logits


ONNX = RuntimeCost(
    base_bytes=84 * MIB,
    load_bytes=84 * MIB,
    state_copies=3.4,
    finish_copies=2,
    load_copies=0,
    looked_up_copies=0,
    embedding_copies=1.3,
    nested_copies=1.1,
    kept={
        "": Kept(hidden=4.2, heads=3.6, ffn=2.5, scores=1.5),
        "gpt2": Kept(hidden=7.1, heads=3.5, ffn=6, scores=0.8),
        "gated": Kept(hidden=10.6, heads=6.8, ffn=5.3, scores=0.8),
    },
    frozen_share=0.7,
    forward_share=0.65,
    logit_copies=3.2,
    inference_bytes=72 * MIB,
    inference_copies=1,
    inference_embedding_copies=1,
)
TORCH = RuntimeCost(
    base_bytes=408 * MIB,
    load_bytes=386 * MIB,
    state_copies=3,
    finish_copies=5,
    load_copies=2,
    looked_up_copies=1,
    embedding_copies=0,
    nested_copies=0,
    kept={
        "": Kept(hidden=3.9, heads=2.8, ffn=2.4, scores=1.2),
        "gpt2": Kept(hidden=5, heads=3.5, ffn=5.1, scores=1),
        "gated": Kept(hidden=7.2, heads=3.5, ffn=4.3, scores=0.9),
    },
    frozen_share=0.65,
    forward_share=0.3,
    logit_copies=3.5,
    inference_bytes=386 * MIB,
    inference_copies=2,
    inference_embedding_copies=0,
)
COSTS: Mapping[Runtime, RuntimeCost] = {Runtime.ONNX: ONNX, Runtime.TORCH: TORCH}
