"""Builds a submodel's graph in milliseconds, by chaining copies of the layer template inside the shell template.

1. Name values apart: copy ``k`` of the layer reads ``hidden.k`` and writes ``hidden.k+1``; gradients run backwards
   along the same numbers. The shell writes ``hidden.0`` and reads the last one.
2. Keep what the requested outputs need, by walking backwards from them. Gradients that nobody asks for fall away, and
   with them the part of the backward pass that only they need; so does the whole of it where only logits are asked for.
3. Sort topologically: ONNX wants producers before consumers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from graphlib import TopologicalSorter

import onnx

from coordinator.models.templates import AUX, HIDDEN_IN, HIDDEN_OUT, TARGET_TOKENS, TOKENS, Templates, at_stack
from edge_sdk.protocol.graphs import GRADIENT

Rename = Callable[[str], str]


def stitch(templates: Templates, layers: tuple[int, ...], is_wanted: Callable[[str], bool]) -> onnx.ModelProto:
    """The graph of a submodel that keeps ``layers``, with the outputs that ``is_wanted`` picks by name.

    Candidates are ``loss``, ``logits`` and ``grad.<parameter>``. Widths stay symbolic, so the graph of given layers
    serves every submodel that keeps them; parameters have their full-model names. Nothing is shared with ``templates``.
    """
    shell = onnx.load_from_string(templates.shell)
    stacks = [[layer for layer in layers if layer in stack] for stack in templates.architecture.stacks]
    _rename(shell.graph, _shell_names(shell.graph, [len(kept) for kept in stacks]))
    graphs = [shell.graph]
    for stack, kept in enumerate(stacks):
        graphs += _stack_graphs(templates, stack, kept)
    graph = _merge(graphs, templates.batch_inputs, is_wanted)
    return onnx.helper.make_model(graph, opset_imports=shell.opset_import, ir_version=shell.ir_version)


def _stack_graphs(templates: Templates, stack: int, kept: Sequence[int]) -> list[onnx.GraphProto]:
    """A copy of the stack's layer template for each layer of it that is ``kept``, and what sums their gradients."""
    copies = [onnx.load_from_string(templates.layers[stack]).graph for _ in kept]
    sums = [value.name for value in copies[0].output if value.name.startswith(GRADIENT + AUX)]
    for position, (layer, copy) in enumerate(zip(kept, copies, strict=True)):
        prefix = templates.family.layer_prefix(layer, templates.architecture)
        _rename(copy, _layer_names(copy, stack, position, prefix))
        _number_widths(copy, layer)
    nodes = [_sum(_at(stack, name), len(kept)) for name in sums]
    return [*copies, onnx.helper.make_graph(nodes, "sums", [], [])]


def _sum(name: str, count: int) -> onnx.NodeProto:
    """The sum of what ``count`` layers write under ``name``."""
    return onnx.helper.make_node("Sum", [_of_layer(name, position) for position in range(count)], [name], name=name)


def _at(stack: int, name: str) -> str:
    """:func:`at_stack` for a gradient too."""
    bare = name.removeprefix(GRADIENT)
    return name.removesuffix(bare) + at_stack(stack, bare)


def _of_layer(name: str, position: int) -> str:
    return f"{name}@{position}"


def _interface(graph: onnx.GraphProto) -> set[str]:
    return {value.name for value in (*graph.input, *graph.output)}


def _shell_names(graph: onnx.GraphProto, depths: Sequence[int]) -> Rename:
    """Interface names stay, but for the boundaries to the layers; values inside get a prefix of their own."""
    names = {name: name for name in _interface(graph)}
    for stack, depth in enumerate(depths):
        names |= {_at(stack, name): number for name, number in _boundaries(stack, 0, depth).items()}
    return lambda name: names.get(name) or f"shell/{name}"


def _layer_names(graph: onnx.GraphProto, stack: int, position: int, prefix: str) -> Rename:
    """Parameters get their full-model names, the boundaries their numbers; values inside a prefix of their own."""
    names = {}
    for name in _interface(graph):
        is_gradient, bare = name.startswith(GRADIENT), name.removeprefix(GRADIENT)
        if not bare.startswith(AUX):
            names[name] = GRADIENT + prefix + bare if is_gradient else prefix + bare
        else:
            names[name] = _of_layer(_at(stack, name), position) if is_gradient else _at(stack, name)
    names |= _boundaries(stack, position, position + 1)
    return lambda name: names.get(name) or f"layer.{stack}.{position}/{name}"


def _boundaries(stack: int, first: int, last: int) -> dict[str, str]:
    """Where a template meets its neighbours: it begins at boundary ``first`` and ends at ``last``."""
    numbers = {HIDDEN_IN: at_stack(stack, f"hidden.{first}"), HIDDEN_OUT: at_stack(stack, f"hidden.{last}")}
    return numbers | {GRADIENT + name: GRADIENT + number for name, number in numbers.items()}


def _rename(graph: onnx.GraphProto, rename: Rename) -> None:
    for node in graph.node:
        node.name = rename(node.name)
        node.input[:] = [name and rename(name) for name in node.input]
        node.output[:] = [name and rename(name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = rename(value.name)


def _number_widths(graph: onnx.GraphProto, layer: int) -> None:
    """Each layer has widths of its own: onnxruntime plans memory by the names of dimensions."""
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param not in {"", "batch", TOKENS, TARGET_TOKENS}:
                dim.dim_param += f"@{layer}"


def _merge(
    graphs: list[onnx.GraphProto], batch_inputs: tuple[str, ...], is_wanted: Callable[[str], bool]
) -> onnx.GraphProto:
    candidates = {value.name: value for graph in graphs for value in graph.output if not _is_internal(value.name)}
    outputs = {name: value for name, value in candidates.items() if is_wanted(name)}
    nodes, needed = _live_nodes((node for graph in graphs for node in graph.node), outputs)
    produced = {name for node in nodes for name in node.output}
    inputs = {value.name: value for graph in graphs for value in graph.input if value.name in needed - produced}
    initializers = [value for graph in graphs for value in graph.initializer if value.name in needed]
    ordered = [inputs.pop(name) for name in batch_inputs if name in inputs]
    return onnx.helper.make_graph(nodes, "submodel", [*ordered, *inputs.values()], outputs.values(), initializers)


def _is_internal(name: str) -> bool:
    """Whether a template's output is another template's input."""
    stack, _, rest = name.removeprefix(GRADIENT).partition(".")
    return stack.isdigit() and rest.startswith(("hidden.", AUX))


def _live_nodes(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that ``outputs`` depend on, producers first, and the names of all values that they touch."""
    nodes = list(nodes)
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needed, open_names = set(outputs), list(outputs)
    order: TopologicalSorter[int] = TopologicalSorter()
    while open_names:
        if (index := producer.get(open_names.pop())) is None:
            continue
        inputs = [name for name in nodes[index].input if name]
        order.add(index, *(producer[name] for name in inputs if name in producer))
        open_names.extend(set(inputs) - needed)
        needed.update(inputs)
    return [nodes[index] for index in order.static_order()], needed
