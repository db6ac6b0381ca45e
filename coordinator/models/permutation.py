"""Reorder heads and FFN neurons without changing what the model computes.

Heads move as blocks of ``head_size`` in the rows of q, k, v and the columns of o; neurons in the rows of up and the
columns of down. A sum over heads or neurons does not depend on their order, so the function is the same up to rounding
(RaFFM, arXiv 2310.00247, theorem 1, extended to v, o and the FFN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.families import Family, Unit
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Architecture

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class LayerOrder:
    """For one layer, the old index of the head and of the FFN neuron that comes first, second, and so on."""

    heads: Indices
    ffn: Indices

    def inverse(self) -> LayerOrder:
        """The order that undoes this one."""
        return LayerOrder(np.argsort(self.heads), np.argsort(self.ffn))


def permute(
    parameters: Mapping[str, Array], family: Family, architecture: Architecture, orders: Sequence[LayerOrder]
) -> dict[str, Array]:
    """The full model's parameters with the units of layer ``i`` in the order ``orders[i]``; a new mapping."""
    rows = [_rows(order, architecture.head_size) for order in orders]
    return {name: _reorder(name, values, family, rows) for name, values in parameters.items()}


def inverse(orders: Sequence[LayerOrder]) -> tuple[LayerOrder, ...]:
    """The orders that undo ``orders``."""
    return tuple(order.inverse() for order in orders)


def _rows(order: LayerOrder, head_size: int) -> dict[Unit, Indices]:
    heads = order.heads[:, None] * head_size + np.arange(head_size)
    return {Unit.HEADS: heads.reshape(-1), Unit.FFN: order.ffn}


def _reorder(name: str, values: Array, family: Family, rows: Sequence[Mapping[Unit, Indices]]) -> Array:
    layer = family.layer_index(name)
    if layer is None:
        return values
    for axis, unit in enumerate(family.axes(name)):
        if unit is not None:
            return values.take(rows[layer][unit], axis=axis)
    return values
