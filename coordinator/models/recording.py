"""Records every operator that a torch function runs, with symbols for the free sizes.

``make_fx`` records what ``torch.autograd.grad`` runs too, which ``torch.export`` does not; once is enough, since the
operators that ONNX does not have are recorded as simpler ones. torch.onnx takes the record, an ``ExportedProgram``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch._decomp import get_decompositions
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from edge_sdk.errors import ModelFormatError

_aten = torch.ops.aten
_DECOMPOSED = get_decompositions(
    getattr(_aten, name)
    for name in (
        "_log_softmax_backward_data",
        "_softmax_backward_data",
        "_unsafe_masked_index_put_accumulate",
        "embedding_dense_backward",
        "gelu_backward",
        "native_layer_norm_backward",
        "rsub",
        "select_backward",
        "silu_backward",
        "slice_backward",
        "tanh_backward",
        "threshold_backward",
    )
)
"""Operators that ONNX does not have, recorded as simpler ones."""
_norm_gradients = _DECOMPOSED[_aten.native_layer_norm_backward.default]


def _norm_gradients_by_products(
    grad_out: torch.Tensor,
    given: torch.Tensor,
    normalized: Sequence[int],
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    wanted: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of a norm over the last axis, whose means over rows and columns are products with a vector.

    Torch's decomposition writes a tensor of the input's size for each mean. This is 1.4 % of a whole step at a quarter
    of MiniLM's width, since a norm's size does not shrink with a submodel's.
    """
    if weight is None or bias is None or len(normalized) > 1:
        return _norm_gradients(grad_out, given, normalized, mean, rstd, weight, bias, wanted)
    width, rows = normalized[0], rstd.reshape(1, -1)
    share, flat = (weight / width)[None], grad_out.reshape(-1, width)
    centred = given - mean
    product = (grad_out * centred).reshape(-1, width)
    shift = share.mm(flat.t()).reshape(rstd.shape)
    slope = share.mm(product.t()).reshape(rstd.shape) * rstd * rstd
    grad_in = (grad_out * weight - centred * slope - shift) * rstd
    return grad_in, rows.mm(product).reshape(-1), flat.sum(0)


_DECOMPOSED[_aten.native_layer_norm_backward.default] = _norm_gradients_by_products

_MEND = "one graph cannot serve every size; use another model"

Tree: TypeAlias = torch.Tensor | dict[str, torch.Tensor] | tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class FreeSize:
    """A size that may differ at run time: ``entries`` for each of its units, which are ``units`` in tracing."""

    name: str
    units: int
    entries: int = 1
    least: int = 1
    most: int = 4096

    @property
    def expression(self) -> str:
        """What the size is called in a graph."""
        return self.name if self.entries == 1 else f"{self.entries}*{self.name}"


FreeSizes: TypeAlias = dict[int, FreeSize]
"""Of a tensor, by axis."""


class _Recorded(ExportedProgram):
    """What was recorded in operators that ONNX has, so that nothing is to be recorded anew to translate it."""

    def run_decompositions(self, *_: object, **__: object) -> ExportedProgram:
        """Nothing is left to decompose: what torch.onnx has no translation for ends in its error."""
        return self


def record(
    function: Callable[..., tuple[torch.Tensor, ...]],
    arguments: tuple[Tree, ...],
    free: Callable[[torch.Tensor], FreeSizes],
) -> ExportedProgram:
    """Record what ``function(*arguments)`` runs; see :func:`coordinator.models.joint_export.export_function`."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    symbolic = pytree.tree_map(lambda tensor: _symbolic(tensor, free(tensor), mode), arguments)
    with mode:
        traced = make_fx(function, _DECOMPOSED, _allow_non_fake_inputs=True)(*symbolic)
        if any(_is_mutable(node.target) for node in traced.graph.nodes):
            traced = make_fx(torch.func.functionalize(traced, remove="mutations"), _DECOMPOSED)(*symbolic)
    sizes = {
        size: tensor.shape[axis].node.expr / size.entries
        for tensor, argument in zip(pytree.tree_leaves(symbolic), pytree.tree_leaves(arguments), strict=True)
        for axis, size in free(argument).items()
    }
    _check_freedom(sizes, [guard.expr for guard in mode.shape_env.guards])
    _slice_instead_of_split(traced)
    _multiply_sizes(traced)
    _read_sizes_once(traced)
    _drop_copies(traced)
    return _program(traced, mode)


def _check_freedom(symbols: Mapping[FreeSize, Any], guards: Sequence[Any]) -> None:
    """Refuse a record that holds only for the sizes it was traced with: ``guards`` decide on ``symbols``."""
    for size, symbol in symbols.items():
        alike = [other.name for other in symbols if other.name != size.name and symbols[other] == symbol]
        if not symbol.is_Symbol or alike:
            raise ModelFormatError(f"the model takes {size.expression} for {alike[0] if alike else symbol}; {_MEND}")
    for units in ("least", "most"):
        values = {symbol: getattr(size, units) for size, symbol in symbols.items()}
        for guard in guards:
            if guard.xreplace(values) == False:  # noqa: E712 - of sympy
                chosen = ", ".join(f"{size.name} {getattr(size, units)}" for size in symbols)
                raise ModelFormatError(f"the model works in another way at {chosen}, where not {guard}; {_MEND}")


def _is_mutable(target: object) -> bool:
    return isinstance(target, OpOverload) and target._schema.is_mutable  # noqa: SLF001 - nothing else tells


def _symbolic(tensor: torch.Tensor, free: FreeSizes, mode: FakeTensorMode) -> torch.Tensor:
    """A tensor without values whose free sizes are symbols; equal sizes have the same."""
    sizes = [DimDynamic.DUCK if axis in free else DimDynamic.STATIC for axis in range(tensor.dim())]
    symbolic = mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
    for axis, size in free.items():
        if size.entries > 1:
            units = _symbolic(torch.empty(size.units), {0: FreeSize(size.name, size.units)}, mode).shape[0]
            torch._check(symbolic.shape[axis] == size.entries * units)  # noqa: SLF001 - public all the same
    return symbolic


def _program(traced: torch.fx.GraphModule, mode: FakeTensorMode) -> ExportedProgram:
    """The record as torch.onnx takes it: constants are inputs that have a value."""
    graph, results = traced.graph, traced.graph.output_node().args[0]
    given = [
        InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None) for node in graph.find_nodes(op="placeholder")
    ]
    constants = {node.target: getattr(traced, node.target) for node in graph.find_nodes(op="get_attr")}
    first = next(iter(graph.nodes))
    lifted = []
    for name, value in constants.items():
        with graph.inserting_before(first):
            constant = graph.placeholder(name)
        constant.meta["val"] = mode.from_tensor(value)
        lifted.append(InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(constant.name), name))
        for node in graph.find_nodes(op="get_attr", target=name):
            node.replace_all_uses_with(constant)
            graph.erase_node(node)
    signature = ExportGraphSignature(
        [*lifted, *given], [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
    )
    structure = pytree.tree_structure(())
    return _Recorded(
        traced,
        graph,
        signature,
        state_dict={},
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", ModuleCallSignature([], [], structure, structure))],
        constants=constants,
    )


def _drop_copies(module: torch.fx.GraphModule) -> None:
    """Remove expansions to the size that a tensor has already: torch's matmul adds four a layer, ONNX would copy."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.expand.default):
        source = node.args[0]
        if source.meta["val"].shape == node.meta["val"].shape:
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)


def _slice_instead_of_split(module: torch.fx.GraphModule) -> None:
    """Cut pieces of a symbolic size out one by one: the optimizer cannot follow ONNX's sequences of pieces."""
    graph = module.graph
    for split in graph.find_nodes(op="call_function", target=_aten.split.Tensor):
        tensor, size, *rest = split.args
        for piece in list(split.users):
            with graph.inserting_before(piece):
                start = _computed(graph, operator.mul, size, piece.args[1])
                stop = _computed(graph, operator.add, start, size)
                cut = graph.call_function(_aten.slice.Tensor, (tensor, rest[0] if rest else 0, start, stop))
            cut.meta = piece.meta
            piece.replace_all_uses_with(cut)
            graph.erase_node(piece)
        graph.erase_node(split)


def _multiply_sizes(module: torch.fx.GraphModule) -> None:
    """Spell out how many entries a tensor has, which torch.onnx does not translate."""
    graph = module.graph
    for entries in graph.find_nodes(op="call_function", target=_aten.sym_numel.default):
        (tensor,) = entries.args
        with graph.inserting_before(entries):
            sizes = [_computed(graph, _aten.sym_size.int, tensor, axis) for axis in range(tensor.meta["val"].dim())]
            product = functools.reduce(functools.partial(_computed, graph, operator.mul), sizes)
        entries.replace_all_uses_with(product)
        graph.erase_node(entries)


def _read_sizes_once(module: torch.fx.GraphModule) -> None:
    """Compute equal sizes once, from the first tensor that has them."""
    first: dict[Any, torch.fx.Node] = {}
    for node in module.graph.nodes:
        size = node.meta.get("val")
        if isinstance(size, torch.SymInt):
            kept = first.setdefault(size.node.expr, node)
            if kept is not node:
                node.replace_all_uses_with(kept)
                module.graph.erase_node(node)


def _computed(graph: torch.fx.Graph, function: Callable[..., Any], *args: object) -> torch.fx.Node:
    """A node with the value that it has in the trace, as torch.onnx wants of each."""
    node = graph.call_function(function, args)
    node.meta["val"] = function(*(arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args))
    return node
