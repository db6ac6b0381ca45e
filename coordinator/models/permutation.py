"""Reorder heads and FFN neurons without changing what the model computes.

A head moves as one: its entries in the rows of q, k, v and the columns of o; a key-value head takes its group of query
heads along, and q, k and v in one weight are three blocks. Neurons move in the rows of up and gate and the columns of
down, and adapters with the modules that they are added to. A sum over heads or neurons does not depend on their order,
so the function is the same up to rounding (RaFFM, arXiv 2310.00247, theorem 1, extended to v, o and the FFN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.families import Axis, Family, Unit
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Architecture
from edge_sdk.errors import ConfigurationError

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LayerOrder:
    """For one layer, the old index of the key-value head and of the FFN neuron that comes first, second, and so on."""

    heads: Indices
    ffn: Indices

    @classmethod
    def of(cls, heads: Sequence[int], ffn: Sequence[int]) -> LayerOrder:
        """The order from lists of old indices."""
        return cls(np.array(heads, dtype=np.intp), np.array(ffn, dtype=np.intp))

    def inverse(self) -> LayerOrder:
        """The order that undoes this one."""
        return LayerOrder(np.argsort(self.heads), np.argsort(self.ffn))

    def entries(self, axis: Axis, architecture: Architecture) -> Indices:
        """The old index of every entry of ``axis``, in the new order."""
        size = axis.entries(architecture)
        units = self.ffn if axis.unit is Unit.FFN else self.heads
        block = (units[:, None] * size + np.arange(size)).reshape(-1)
        return np.concatenate([block + start * len(block) for start in range(axis.blocks)])


def permute(
    parameters: Mapping[str, Array], family: Family, architecture: Architecture, orders: Sequence[LayerOrder]
) -> dict[str, Array]:
    """The full model's parameters with the units of layer ``i`` in the order ``orders[i]``; a new mapping.

    Raises ``ConfigurationError`` where layers that share a position bias are to order their heads differently.
    """
    _check_shared_heads(architecture, orders)
    return {name: _reorder(name, values, family, architecture, orders) for name, values in parameters.items()}


def inverse(orders: Sequence[LayerOrder]) -> tuple[LayerOrder, ...]:
    """The orders that undo ``orders``."""
    return tuple(order.inverse() for order in orders)


def _check_shared_heads(architecture: Architecture, orders: Sequence[LayerOrder]) -> None:
    if not architecture.encoder_layers:
        return
    for stack in architecture.stacks:
        for layer in stack:
            if not np.array_equal(orders[layer].heads, orders[stack.start].heads):
                raise ConfigurationError(
                    f"layers {stack.start} and {layer} order their heads differently, but share a position bias; "
                    "rank the heads of a stack together"
                )


def _reorder(
    name: str, values: Array, family: Family, architecture: Architecture, orders: Sequence[LayerOrder]
) -> Array:
    layer = family.layer_index(name, architecture)
    if layer is None:  # only a position bias has elastic axes outside of a layer: its stack's
        layer = architecture.stacks[family.stack_index(name) or 0].start
    for place, axis in enumerate(family.axes(name)):
        if axis is not None and axis.unit is not Unit.RANK:
            values = values.take(orders[layer].entries(axis, architecture), axis=place)
    return values
