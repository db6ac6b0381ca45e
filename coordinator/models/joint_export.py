"""Exports a torch function that computes its own gradients as one plain ONNX graph.

``torch.onnx`` translates the record of what runs. Only opset 20 remains: no torch is needed to run it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import optimizer
from torch.utils import _pytree as pytree

from coordinator.models.recording import FreeSizes, Tree, record
from edge_sdk.errors import ModelFormatError

OPSET = 20


def export_function(
    function: Callable[..., tuple[torch.Tensor, ...]],
    arguments: tuple[Tree, ...],
    free: Callable[[torch.Tensor], FreeSizes],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """The ONNX graph of ``function(*arguments)`` with its flattened inputs and outputs named as given.

    ``free(tensor)`` says which axes of an argument are free. Sizes that may differ at run time must differ in
    ``arguments``, from each other and from every fixed size: tracing takes equal sizes for the same size.
    Raises ``ModelFormatError`` where the exporter lost an input or an output, which it does without saying so, and
    where the function works in another way at other sizes.
    """
    with _quiet():
        program = record(function, arguments, free)
        model = torch.onnx.export(program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False).model
        _name(model.graph.inputs, inputs)
        _name(model.graph.outputs, outputs)
        for value, argument in zip(model.graph.inputs, pytree.tree_leaves(arguments), strict=True):
            _name_axes(value, free(argument))
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


def _name(values: Sequence[ir.Value], names: Sequence[str]) -> None:
    if len({id(value) for value in values}) != len(names):
        raise ModelFormatError(
            f"the exporter kept {len(values)} of {len(names)} values ({', '.join(names[:3])}, ...); "
            "use the torch version that pyproject.toml names"
        )
    for value, name in zip(values, names, strict=True):
        value.name = name


def _name_axes(value: ir.Value, free: FreeSizes) -> None:
    value.shape = ir.Shape([free[axis].expression if axis in free else size for axis, size in enumerate(value.shape)])
