"""A classifier small enough to write its gradients by hand, as a training graph and as an inference model.

logits = mean of the embeddings of the unmasked tokens, times a weight, plus a bias. The inputs and outputs have the
names and types of the graphs that a coordinator compiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.data import TextExamples, write_examples
from edge_sdk.elastic.submodel import Architecture, Submodel
from edge_sdk.protocol.messages import Recipe
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.training.job import TrainingJob

WORDS = ("[PAD]", "[UNK]", "good", "fine", "bad", "awful", "the", "film")
LABELS = ("negative", "positive")
HIDDEN = 3
PLACES = "rows.input_ids.embedding.weight"

_FORWARD = (
    ("Cast", ["attention_mask"], "mask", {"to": TensorProto.FLOAT}),
    ("Gather", ["embedding.weight", "input_ids"], "embedded", {}),
    ("Unsqueeze", ["mask", "last"], "mask3", {}),
    ("Mul", ["embedded", "mask3"], "masked", {}),
    ("ReduceSum", ["masked", "middle"], "summed", {"keepdims": 0}),
    ("ReduceSum", ["mask", "middle"], "count", {"keepdims": 1}),
    ("Div", ["summed", "count"], "pooled", {}),
    ("Gemm", ["pooled", "classifier.weight", "classifier.bias"], "logits", {"transB": 1}),
)
_BACKWARD = (
    ("Add", ["logits", "logit_offset"], "adjusted", {}),
    ("LogSoftmax", ["adjusted"], "log_p", {"axis": 1}),
    ("Exp", ["log_p"], "p", {}),
    ("Mul", ["log_p", "targets"], "picked", {}),
    ("ReduceSum", ["picked"], "log_likelihood", {"keepdims": 0}),
    ("ReduceSum", ["targets"], "batch_size", {"keepdims": 0}),
    ("Div", ["log_likelihood", "batch_size"], "mean", {}),
    ("Neg", ["mean"], "loss", {}),
    ("Sub", ["p", "targets"], "excess", {}),
    ("Div", ["excess", "batch_size"], "delta", {}),
    ("Gemm", ["delta", "pooled"], "grad.classifier.weight", {"transA": 1}),
    ("ReduceSum", ["delta", "first"], "grad.classifier.bias", {"keepdims": 0}),
)
_INTEGERS = {"last": [-1], "middle": [1], "first": [0]}


def parameters(seed: int) -> dict[str, NDArray[np.float32]]:
    """Random values of all three parameters."""
    shapes = {
        "embedding.weight": (len(WORDS), HIDDEN),
        "classifier.weight": (len(LABELS), HIDDEN),
        "classifier.bias": (len(LABELS),),
    }
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def training_graph(names: Mapping[str, str] | None = None, *, by_rows: bool = False) -> onnx.ModelProto:
    """The training graph, its values renamed by ``names``. Its axes of length ``HIDDEN`` are free.

    Where it is ``by_rows`` it takes any rows of the embedding, and the tokens' places in these.
    """
    shapes = {
        "embedding.weight": ["rows" if by_rows else len(WORDS), "hidden"],
        "classifier.weight": [2, "hidden"],
        "classifier.bias": [2],
    }
    inputs = [*_batch_inputs(), _info("targets", TensorProto.FLOAT, ["batch", len(LABELS)])]
    inputs += [_info(name, TensorProto.FLOAT, shape) for name, shape in {"logit_offset": [2], **shapes}.items()]
    outputs = ["loss", "logits", "grad.classifier.weight", "grad.classifier.bias"]
    model = _model((*_FORWARD, *_BACKWARD), inputs, outputs, {})
    if by_rows:
        model.graph.input.append(_info(PLACES, TensorProto.INT64, ["batch", "tokens"]))
        next(node for node in model.graph.node if node.op_type == "Gather").input[1] = PLACES
    _rename(model.graph, names or {})
    return model


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def inference_model(values: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """The forward pass with its weights inside."""
    return _model(_FORWARD, _batch_inputs(), ["logits"], values)


def tokenizer_json() -> bytes:
    """One token a word, unknown words apart."""
    return msgspec.json.encode(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "[UNK]"},
        }
    )


def examples(count: int, seed: int) -> TextExamples:
    """Texts of 1 to 5 words, whose last word decides the label."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS[2:], size=rng.integers(1, 5))) for _ in range(count)]
    labels = [LABELS[rng.integers(2)] for _ in range(count)]
    ends = {"negative": ("bad", "awful"), "positive": ("good", "fine")}
    return TextExamples(
        tuple(f"{text} {rng.choice(ends[label])}" for text, label in zip(texts, labels, strict=True)), tuple(labels)
    )


def training_job(folder: Path, **changes: object) -> TrainingJob:
    """A job with all its files in ``folder``, which trains the classifier and leaves the embedding frozen."""
    values = parameters(1)
    for name, prefix in (("weights", "classifier"), ("frozen", "embedding")):
        with (folder / name).open("wb") as file:
            write_tensors(file, {key: array for key, array in values.items() if key.startswith(prefix)})
    (folder / "graph.onnx").write_bytes(training_graph().SerializeToString())
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    write_examples(folder / "examples.jsonl", examples(40, seed=2))
    job = TrainingJob(
        weights=str(folder / "weights"),
        frozen=str(folder / "frozen"),
        graph=str(folder / "graph.onnx"),
        tokenizer=str(folder / "tokenizer.json"),
        examples=str(folder / "examples.jsonl"),
        update=str(folder / "update.safetensors"),
        labels=LABELS,
        recipe=Recipe(learning_rate=0.05, batch_size=8, epochs=4, max_tokens=16),
        seed=3,
        threads=1,
        memory_limit_bytes=1 << 30,
        architecture=Architecture("bert", 1, 1, HIDDEN, 1, HIDDEN, len(WORDS), 16, len(LABELS)),
        submodel=Submodel((0,), (1,), (1,)),
    )
    return msgspec.structs.replace(job, **changes)


def _batch_inputs() -> list[onnx.ValueInfoProto]:
    return [_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")]


def _info(name: str, kind: int, shape: object) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: tuple, inputs: list, outputs: list[str], values: dict) -> onnx.ModelProto:  # type: ignore[type-arg]
    constants = [numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in _INTEGERS.items()]
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    made = [helper.make_node(op, ins, [out], **attributes) for op, ins, out, attributes in nodes]
    results = [_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(made, "logistic", inputs, results, [*constants, *weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
