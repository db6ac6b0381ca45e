"""A torch function that computes its own gradients, as one plain ONNX graph.

``make_fx`` records every operator that runs, those of ``torch.autograd.grad`` included; ``torch.export`` gives the
record named dynamic dimensions; ``torch.onnx`` translates it. Only opset 20 remains: no torch is needed to run it.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import optimizer
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from edge_sdk.errors import ModelFormatError

OPSET = 20
_UNTRANSLATED = (torch.ops.aten.silu_backward,)  # operators without an ONNX translation, replaced by simpler ones

Tree: TypeAlias = torch.Tensor | dict[str, torch.Tensor] | tuple[torch.Tensor, ...]
Dims: TypeAlias = dict[int, "torch.export.Dim"]


def export_function(
    function: Callable[..., tuple[torch.Tensor, ...]],
    arguments: tuple[Tree, ...],
    dims: Callable[[torch.Tensor], Dims],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """The ONNX graph of ``function(*arguments)`` with its flattened inputs and outputs named as given.

    ``dims(tensor)`` says which axes of an argument are free. Sizes that may differ at run time must differ in
    ``arguments``, from each other and from every fixed size: tracing takes equal sizes for the same size.
    Raises ``ModelFormatError`` where the exporter lost an input or an output, which it does without saying so.
    """
    with _quiet():
        traced = make_fx(
            function,
            decomposition_table=get_decompositions(_UNTRANSLATED),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(*arguments)
        _slice_instead_of_split(traced)
        shapes = pytree.tree_map(dims, arguments)
        program = torch.export.export(traced, arguments, dynamic_shapes=shapes, strict=False)
        _drop_copies(program.graph_module)
        model = torch.onnx.export(program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False).model
        _name(model.graph.inputs, inputs)
        _name(model.graph.outputs, outputs)
        for value, argument in zip(model.graph.inputs, pytree.tree_leaves(arguments), strict=True):
            _name_axes(value, dims(argument))
        optimizer.optimize(model)
        ClearMetadataAndDocStringPass()(model)
        for value in model.graph.outputs:
            value.shape = None  # in torch's own symbols, which mean nothing outside
    return ir.to_proto(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and onnxscript say about their own deprecations and about torchvision being absent."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _drop_copies(module: torch.fx.GraphModule) -> None:
    """Remove expansions to the size that a tensor has already: torch's matmul adds four a layer, ONNX would copy."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.expand.default):
        source = node.args[0]
        if source.meta["val"].shape == node.meta["val"].shape:
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)


def _slice_instead_of_split(module: torch.fx.GraphModule) -> None:
    """Cut pieces of a symbolic size out one by one: the optimizer cannot follow ONNX's sequences of pieces."""
    aten, graph = torch.ops.aten, module.graph
    for split in graph.find_nodes(op="call_function", target=aten.split.Tensor):
        tensor, size, *rest = split.args
        for piece in list(split.users):
            with graph.inserting_before(piece):
                start = graph.call_function(operator.mul, (size, piece.args[1]))
                stop = graph.call_function(operator.add, (start, size))
                cut = graph.call_function(aten.slice.Tensor, (tensor, rest[0] if rest else 0, start, stop))
            piece.replace_all_uses_with(cut)
            graph.erase_node(piece)
        graph.erase_node(split)
    module.recompile()


def _name(values: Sequence[ir.Value], names: Sequence[str]) -> None:
    if len({id(value) for value in values}) != len(names):
        raise ModelFormatError(
            f"the exporter kept {len(values)} of {len(names)} values ({', '.join(names[:3])}, ...); "
            "use the torch version that pyproject.toml names"
        )
    for value, name in zip(values, names, strict=True):
        value.name = name


def _name_axes(value: ir.Value, dims: Dims) -> None:
    value.shape = ir.Shape([dims[axis].__name__ if axis in dims else size for axis, size in enumerate(value.shape)])
