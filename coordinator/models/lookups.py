"""Embedding tables that a graph only looks up are not fed whole, but as the needed rows and the ids' places in them.

    before   Gather(table, ids)
    after    Gather(table, rows.<ids>.<table>), of as many rows as are fed for the table

So a device keeps a table in its file and reads a hundredth of it a step. The ids stay what they are for all else that
looks at them, such as what tells padding from text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import onnx

from edge_sdk.protocol.graphs import GRADIENT, RowInput

_SHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity"})  # these leave each id as it is


class _Lookup(NamedTuple):
    """The node at ``position`` looks up ``ids``, which the nodes at ``shaping`` have given another shape, in order."""

    position: int
    ids: str
    shaping: list[int]


def take_rows(graph: onnx.GraphProto) -> None:
    """Rewrite the lookups of ``graph`` as above. A table that is trained, or also used in another way, stays whole."""
    inputs = {value.name: value for value in graph.input}
    nodes, copies = list(graph.node), dict[int, list[onnx.NodeProto]]()
    for table, lookups in _tables(graph):
        inputs[table].type.tensor_type.shape.dim[0].dim_param = f"rows.{table}"
        for lookup in lookups:
            copies[lookup.position] = _look_up_places(nodes, lookup, RowInput(lookup.ids, table).name)
        for ids in dict.fromkeys(lookup.ids for lookup in lookups):
            added = graph.input.add()
            added.CopyFrom(inputs[ids])
            added.name = RowInput(ids, table).name
    changed = [node for position, node in enumerate(nodes) for node in (*copies.get(position, ()), node)]
    del graph.node[:]
    graph.node.extend(changed)


def _tables(graph: onnx.GraphProto) -> Iterator[tuple[str, list[_Lookup]]]:
    """Each input that ids of other inputs are looked up in, and nothing else is done with."""
    inputs = [value.name for value in graph.input]
    producer = {name: position for position, node in enumerate(graph.node) for name in node.output}
    readers: dict[str, set[int]] = defaultdict(set)
    for position, node in enumerate(graph.node):
        for name in node.input:
            readers[name].add(position)
    trained = {value.name.removeprefix(GRADIENT) for value in graph.output}
    for table in inputs:
        if table in trained or not all(_looks_up(graph.node[position], table) for position in readers[table]):
            continue
        lookups = [_lookup(graph, producer, position) for position in sorted(readers[table])]
        if lookups and all(lookup.ids in inputs for lookup in lookups):
            yield table, lookups


def _looks_up(node: onnx.NodeProto, table: str) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0 and node.input[0] == table != node.input[1]


def _lookup(graph: onnx.GraphProto, producer: dict[str, int], position: int) -> _Lookup:
    ids, shaping = graph.node[position].input[1], list[int]()
    while (before := producer.get(ids)) is not None and graph.node[before].op_type in _SHAPING:
        ids, shaping = graph.node[before].input[0], [before, *shaping]
    return _Lookup(position, ids, shaping)


def _look_up_places(nodes: list[onnx.NodeProto], lookup: _Lookup, places: str) -> list[onnx.NodeProto]:
    """Make the lookup one of ``places`` instead of ids; the nodes that give these the same shape before it."""
    copies = []
    for position in lookup.shaping:
        copy = onnx.NodeProto()
        copy.CopyFrom(nodes[position])
        copy.input[0], copy.output[0] = places, f"{copy.output[0]}/{lookup.position}"
        places, copy.name = copy.output[0], f"{copy.name}/{lookup.position}"
        copies.append(copy)
    nodes[lookup.position].input[1] = places
    return copies
