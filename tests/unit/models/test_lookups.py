"""Tables by rows, in graphs small enough to read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from coordinator.models.lookups import take_rows
from coordinator.models.running import Runner
from coordinator.models.templates import Templates
from coordinator.models.training_graph import training_graph
from edge_sdk.elastic.submodel import TrainablePart, full
from edge_sdk.protocol.graphs import row_inputs

Nodes = list[tuple[str, list[str], str]]
TABLE = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
IDS = np.array([[7, 2, 2], [9, 7, 0]])
PLACES = "rows.ids.table"
LOOKED_UP: Nodes = [("Gather", ["table", "ids"], "out")]
RESHAPED: Nodes = [("Reshape", ["ids", "flat"], "row"), ("Gather", ["table", "row"], "out")]
TWICE: Nodes = [*RESHAPED, ("Gather", ["table", "ids"], "again"), ("Equal", ["ids", "flat"], "is_padding")]
COLUMNS: Nodes = [("Transpose", ["table"], "columns"), ("Gather", ["columns", "ids"], "out")]


def graph_of(nodes: Nodes, *others: str, axis: int | None = None) -> onnx.ModelProto:
    """It gives ``out`` and these ``others``."""
    made = [helper.make_node(kind, given, [out], name=out) for kind, given, out in nodes]
    if axis is not None:
        made[-1].attribute.append(helper.make_attribute("axis", axis))
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("table", TensorProto.FLOAT, [10, 3]),
    ]
    kinds = {"is_padding": TensorProto.BOOL}
    outputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in ("out", *others)
    ]
    flat = numpy_helper.from_array(np.array([-1]), "flat")
    graph = helper.make_graph(made, "graph", inputs, outputs, [flat])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("nodes", "others"),
    [(LOOKED_UP, []), (RESHAPED, []), (TWICE, ["again", "is_padding"])],
    ids=["at-once", "reshaped", "twice-and-compared"],
)
def test_rows_and_places_give_what_the_whole_table_gives(nodes: Nodes, others: list[str]) -> None:
    model = graph_of(nodes, *others)
    whole = {"ids": IDS, "table": TABLE}
    expected = _run(model, whole)
    take_rows(model.graph)

    rows, places = np.unique(IDS, return_inverse=True)
    some = {"ids": IDS, "table": TABLE[rows], PLACES: places.reshape(IDS.shape)}
    for name, values in expected.items():
        np.testing.assert_array_equal(_run(model, some)[name], values)
        np.testing.assert_array_equal(Runner(model, threads=1).run(whole)[name], values)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(graph_of([*LOOKED_UP, ("Transpose", ["table"], "head")], "head"), id="the-table-is-the-head-too"),
        pytest.param(graph_of(LOOKED_UP, "grad.table"), id="it-is-trained"),
        pytest.param(graph_of(LOOKED_UP, axis=1), id="columns-are-looked-up"),
        pytest.param(graph_of(COLUMNS), id="what-it-became-is-looked-up"),
        pytest.param(
            graph_of([("Add", ["ids", "flat"], "next"), ("Gather", ["table", "next"], "out")]), id="places-are-computed"
        ),
    ],
)
def test_any_other_table_stays_whole(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    take_rows(model.graph)
    assert model.SerializeToString() == before


def _run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


@pytest.mark.minilm
@pytest.mark.parametrize("part", [TrainablePart.NO_EMBEDDINGS, TrainablePart.HEAD])
def test_who_trains_no_embeddings_needs_no_table_of_words(minilm_templates: Templates, part: TrainablePart) -> None:
    graph = training_graph(minilm_templates, full(minilm_templates.architecture), part).graph
    rows = row_inputs(value.name for value in graph.input).values()
    assert [row.table for row in rows] == ["bert.embeddings.word_embeddings.weight"]


@pytest.mark.minilm
def test_who_trains_the_embeddings_has_the_whole_table(minilm_templates: Templates) -> None:
    graph = training_graph(minilm_templates, full(minilm_templates.architecture), TrainablePart.ALL).graph
    assert not row_inputs(value.name for value in graph.input)
