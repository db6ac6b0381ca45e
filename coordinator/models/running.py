"""Runs a compiled graph on the coordinator with onnxruntime; numpy in and out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edge_sdk.elastic.slicing import Array
from edge_sdk.protocol.graphs import row_inputs

Feeds = Mapping[str, NDArray[np.generic]]


class Runner:
    """One onnxruntime session on ``threads`` threads; weights are given at every run and are not copied."""

    def __init__(self, model: onnx.ModelProto | bytes, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        file = model if isinstance(model, bytes) else model.SerializeToString()
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._rows = row_inputs(self._inputs)

    def run(self, *feeds: Feeds) -> dict[str, Array]:
        """All outputs by name. Later ``feeds`` win over earlier ones; what the graph does not read is left out.

        Tables are given whole, so that ids are their own places in them.
        """
        given = {name: value for feed in feeds for name, value in feed.items()}
        given |= {name: given[row.ids] for name, row in self._rows.items()}
        values = self._session.run(self._outputs, {name: given[name] for name in self._inputs})
        return dict(zip(self._outputs, values, strict=True))
