"""Models of one matrix, whose tags, or whose next word after each, can be told beforehand."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.protocol.graphs import DECODER_INPUT, INPUTS, LOGITS


def table_model(task: ModelTask, table: np.ndarray) -> bytes:
    """A model for ``task`` whose logits at each token are that token's row of ``table`` (vocabulary, logits)."""
    names = INPUTS[task]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", name]) for name in names]
    read = DECODER_INPUT if DECODER_INPUT in names else names[0]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", read], [LOGITS], axis=0)],
        "one matrix",
        inputs,
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(table.astype(np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())
