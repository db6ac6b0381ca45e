"""What a submodel costs a device: parameters, bytes on the wire, FLOPs, and the peak resident memory of its process.

Counts are exact for BERT; families whose embeddings or head differ in shape deviate by less than the memory model does.
The memory model adds up what a process holds at its worst moment. Its constants are fitted to measurements, which
``tests/unit/elastic/test_cost.py`` lists: within 4 % where layers are trained, within 10 % everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart

FLOAT_BYTES = 4
MIB = 1 << 20
_TOKEN_TYPES = 2
_STATE_COPIES_AT_END = 4  # weight, gradient and the two moments of AdamW
_BACKWARD = 2  # a backward pass multiplies once for the input's and once for the weight's gradient


@dataclass(frozen=True, slots=True)
class RuntimeCost:
    """Constants of one runtime: bytes of resident memory (VmHWM) of its process on x86-64 Linux, and float32 arrays.

    ``base_bytes``, ``inference_base_bytes``: interpreter, libraries, tokenizer and graph of a process that trains or
    predicts. ``state_copies``: arrays of a trained parameter's size (weight, two moments, and the part of the gradient
    that exists while activations are at their peak); ``embedding_copies``: how many more where embeddings are trained,
    whose gradient is built in a dense array; ``nested_copies``: arrays of a nested prefix's trained parameters.
    ``hidden_copies``, ``head_copies``, ``ffn_copies``, ``score_copies``: arrays of (tokens, hidden), (tokens, heads x
    head size), (tokens, FFN) and (heads, tokens, tokens) that a layer keeps for its backward pass; ``forward_share``:
    the share of these that it holds at once while it only runs forward.
    """

    base_bytes: int
    inference_base_bytes: int
    state_copies: float
    embedding_copies: float
    nested_copies: float
    hidden_copies: float
    head_copies: float
    ffn_copies: float
    score_copies: float
    forward_share: float


ONNX = RuntimeCost(
    base_bytes=78 * MIB,
    inference_base_bytes=69 * MIB,
    state_copies=3.3,
    embedding_copies=1.6,
    nested_copies=1.5,
    hidden_copies=5.5,
    head_copies=1.9,
    ffn_copies=2.3,
    score_copies=1.9,
    forward_share=0.6,
)


def parameter_count(submodel: Submodel, architecture: Architecture) -> int:
    """All parameters of the submodel: embeddings, kept layers and head."""
    return _embedding_count(architecture) + sum(_layer_counts(submodel, architecture)) + _head_count(architecture)


def trainable_count(submodel: Submodel, architecture: Architecture, part: TrainablePart) -> int:
    """The parameters that a device which trains ``part`` changes and uploads."""
    if part is TrainablePart.HEAD:
        return _head_count(architecture)
    embeddings = _embedding_count(architecture) if part is TrainablePart.ALL else 0
    return embeddings + sum(_layer_counts(submodel, architecture)) + _head_count(architecture)


def update_bytes(submodel: Submodel, architecture: Architecture, part: TrainablePart) -> int:
    """The rows of an update in float32, its header left out."""
    return FLOAT_BYTES * trainable_count(submodel, architecture, part)


def training_flops(
    submodel: Submodel, architecture: Architecture, part: TrainablePart, *, samples: int, tokens: int
) -> int:
    """Floating-point operations to train once on ``samples`` texts of ``tokens`` tokens; an addition counts as one.

    Two per weight and token forward, four backward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), and the
    attention scores, which grow with the square of the length. Frozen layers are not run backward.
    """
    layers = sum(
        tokens * (2 * weights + 4 * tokens * heads * architecture.head_size)
        for weights, heads in zip(_layer_counts(submodel, architecture), submodel.heads, strict=True)
    )
    trained_layers = 1 if part is TrainablePart.HEAD else 1 + _BACKWARD
    return samples * (trained_layers * layers + (1 + _BACKWARD) * 2 * _head_count(architecture))


def training_memory_bytes(
    submodel: Submodel,
    architecture: Architecture,
    part: TrainablePart,
    *,
    batch_size: int,
    max_tokens: int,
    nested: Submodel | None = None,
    runtime: RuntimeCost = ONNX,
) -> int:
    """Peak resident memory of the process that trains ``part``: what its limit is compared with.

    Of frozen embeddings only the rows that a batch looks up become resident, so they do not count; frozen layers do.
    The worst moment is either the start of the backward pass, with all activations and few gradients, or its end, with
    all gradients. ``nested`` is a prefix that is trained in the same step.
    """
    trainable = trainable_count(submodel, architecture, part)
    layers = [batch_size * count for count in _activation_counts(submodel, architecture, max_tokens, runtime)]
    values = max(runtime.state_copies * trainable + sum(layers), _STATE_COPIES_AT_END * trainable + max(layers))
    if part is TrainablePart.ALL:
        values += runtime.embedding_copies * _embedding_count(architecture)
    if part is TrainablePart.HEAD:
        frozen = sum(_layer_counts(submodel, architecture))
        values = _STATE_COPIES_AT_END * trainable + frozen + runtime.forward_share * max(layers)
    if nested is not None:
        values += runtime.nested_copies * trainable_count(nested, architecture, part)
    return runtime.base_bytes + int(FLOAT_BYTES * values)


def inference_memory_bytes(
    submodel: Submodel, architecture: Architecture, *, max_tokens: int, quantised: bool, runtime: RuntimeCost = ONNX
) -> int:
    """Peak resident memory of a process that predicts one text at a time; ``quantised`` weights take one byte each.

    The peak is at the start, where the largest array, the embeddings, exists in the file's copy and in the session's.
    """
    weight_bytes = 1 if quantised else FLOAT_BYTES
    widest = max(_activation_counts(submodel, architecture, max_tokens, runtime))
    passing = max(weight_bytes * _embedding_count(architecture), FLOAT_BYTES * runtime.forward_share * widest)
    return runtime.inference_base_bytes + weight_bytes * parameter_count(submodel, architecture) + int(passing)


def _activation_counts(
    submodel: Submodel, architecture: Architecture, tokens: int, runtime: RuntimeCost
) -> list[float]:
    """The values that each layer keeps of one text for its backward pass."""
    return [
        tokens
        * (
            runtime.hidden_copies * architecture.hidden
            + runtime.head_copies * heads * architecture.head_size
            + runtime.ffn_copies * ffn
            + runtime.score_copies * heads * tokens
        )
        for heads, ffn in zip(submodel.heads, submodel.ffn, strict=True)
    ]


def _embedding_count(architecture: Architecture) -> int:
    rows = architecture.vocabulary + architecture.positions + _TOKEN_TYPES
    return (rows + 2) * architecture.hidden  # with the norm's gain and bias


def _layer_counts(submodel: Submodel, architecture: Architecture) -> list[int]:
    """Parameters of each kept layer: q, k, v, o, up, down with biases, and two norms."""
    hidden = architecture.hidden
    return [
        4 * hidden * width + 3 * width + hidden + 2 * hidden * ffn + ffn + hidden + 4 * hidden
        for width, ffn in zip((heads * architecture.head_size for heads in submodel.heads), submodel.ffn, strict=True)
    ]


def _head_count(architecture: Architecture) -> int:
    """A dense layer of the hidden size, then the classifier."""
    hidden = architecture.hidden
    return hidden * (hidden + 1) + architecture.labels * (hidden + 1)
