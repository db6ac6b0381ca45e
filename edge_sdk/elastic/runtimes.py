"""Where the bytes of a process are at its worst moments, by runtime: what the constants of the cost model mean.

Constants are of x86-64 Linux, and fitted to the measurements that ``tests/unit/elastic/test_cost.py`` lists. Memory is
resident (VmHWM); a value is a float32.
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
    """What trains: onnxruntime on a training graph, or torch on a module made from a configuration."""

    ONNX = "onnx"
    TORCH = "torch"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a layer keeps of one token for its backward pass, in arrays.

    ``hidden`` of the hidden size, ``heads`` of all query heads together, ``ffn`` of the FFN's width, ``scores`` of one
    entry a query head and token.
    """

    hidden: float
    heads: float
    ffn: float
    scores: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a submodel has in memory while a batch is trained, in values.

    ``trained`` and ``frozen`` are parameters, ``frozen`` without those that are only ``looked_up``; ``embedded`` are
    those of the trained ones that are looked up, ``in_layers`` those of either kind that lie in layers. ``activations``
    are each layer's, ``logits`` those of the batch.
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
    """Constants of one runtime; copies are arrays of the size of what they are of.

    ``base_bytes``, ``load_bytes``, ``inference_bytes``: interpreter, libraries, tokenizer and graph of a process that
    trains, that has yet to take its first step, and that predicts. The latter loads ``inference_copies`` of all
    parameters and ``inference_embedding_copies`` more of embeddings, the largest array.

    ``state_copies`` of trained parameters while activations are at their peak: weight, two moments, and the part of the
    gradients that is there by then; ``finish_copies`` while the update is written. ``load_copies`` of frozen ones while
    they are read; ``looked_up_copies`` of frozen embeddings later on, ``embedding_copies`` of trained ones beside their
    state, whose gradient is dense. ``nested_copies`` of the layers of the largest nested submodel.

    ``kept``: what a layer keeps, by family, else under ``"gated"`` or ``""``. Where all its weights are frozen that is
    ``frozen_share`` of it, and ``forward_share`` is there at once while it only runs forward. ``logit_copies``: of
    logits while a backward pass begins.
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
        """The peak of a training process: the largest of its moments.

        The optimizer keeps ``moments`` arrays beside the weights, and where gradients are summed there is one more.

        1. Frozen parameters are read.
        2. A backward pass begins, with all activations and few gradients, or
        3. ends, with all gradients.
        4. A nested submodel runs besides the whole one's gradients, on copies of what it narrows.
        5. The update is written.
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
        """The peak of a process that predicts one by one, with ``running`` values while it does.

        Weights that are ``quantised`` take a byte each, and are packed anew where inputs are multiplied with them.
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
