"""How many parameters a submodel has, exactly: polynomials in its widths, computed once per model.

No parameter in the families table has more than two elastic axes, so a layer's count is a sum of six terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_sdk.elastic.families import Axis, Family, Unit
from edge_sdk.elastic.slicing import Shapes
from edge_sdk.elastic.submodel import Architecture, Submodel

_TERMS: dict[frozenset[Unit], str] = {
    frozenset(): "constant",
    frozenset({Unit.HEADS}): "heads",
    frozenset({Unit.FFN}): "ffn",
    frozenset({Unit.RANK}): "rank",
    frozenset({Unit.HEADS, Unit.RANK}): "heads_rank",
    frozenset({Unit.FFN, Unit.RANK}): "ffn_rank",
}


@dataclass(frozen=True, slots=True)
class Polynomial:
    """The number of entries of some parameters, of a layer or a position bias, as a polynomial in the widths."""

    constant: int = 0
    heads: int = 0
    ffn: int = 0
    rank: int = 0
    heads_rank: int = 0
    ffn_rank: int = 0

    @classmethod
    def of(cls, axes: tuple[Axis | None, ...], shape: tuple[int, ...], architecture: Architecture) -> Polynomial:
        """The entries of one parameter of ``shape``, whose ``axes`` the families table gives."""
        factors = [
            size if axis is None else axis.blocks * axis.entries(architecture)
            for axis, size in zip(axes or (None,) * len(shape), shape, strict=True)
        ]
        return cls(**{_TERMS[frozenset(axis.unit for axis in axes if axis)]: math.prod(factors)})

    def __add__(self, other: Polynomial) -> Polynomial:
        """The sum of both."""
        return Polynomial(
            self.constant + other.constant,
            self.heads + other.heads,
            self.ffn + other.ffn,
            self.rank + other.rank,
            self.heads_rank + other.heads_rank,
            self.ffn_rank + other.ffn_rank,
        )

    def at(self, heads: int, ffn: int, rank: int) -> int:
        """The entries at these widths."""
        by_head, by_neuron = self.heads + self.heads_rank * rank, self.ffn + self.ffn_rank * rank
        return self.constant + self.rank * rank + by_head * heads + by_neuron * ffn


@dataclass(frozen=True, slots=True)
class Counts:
    """The number of entries of some of a model's parameters: by layer, by stack's position bias, and ``around`` them.

    ``around`` the layers lie embeddings, final norms and the head, which have the same size in every submodel.
    """

    around: int
    layers: tuple[Polynomial, ...]
    biases: tuple[Polynomial, ...]
    stacks: tuple[range, ...]

    @classmethod
    def of(cls, architecture: Architecture, family: Family, shapes: Shapes) -> Counts:
        """Count the parameters in ``shapes``: shapes of the full model, of all its parameters or some."""
        around = 0
        layers, biases = [Polynomial()] * architecture.layers, [Polynomial()] * len(architecture.stacks)
        for name, shape in shapes.items():
            entries = Polynomial.of(family.axes(name), shape, architecture)
            if (layer := family.layer_index(name, architecture)) is not None:
                layers[layer] += entries
            elif family.axes(name) and (stack := family.stack_index(name)) is not None:
                biases[stack] += entries
            else:
                around += entries.constant
        return cls(around, tuple(layers), tuple(biases), architecture.stacks)

    def by_layer(self, submodel: Submodel) -> list[int]:
        """The entries of each kept layer."""
        rank, widths = submodel.adapter_rank, zip(submodel.layers, submodel.heads, submodel.ffn, strict=True)
        return [self.layers[layer].at(heads, ffn, rank) for layer, heads, ffn in widths]

    def total(self, submodel: Submodel) -> int:
        """The entries of the whole submodel."""
        return self.around + sum(self.by_layer(submodel)) + self._of_biases(submodel)

    def _of_biases(self, submodel: Submodel) -> int:
        """The entries of position biases, each of which has the heads that all layers of its stack have."""
        heads = dict(zip(submodel.layers, submodel.heads, strict=True))
        return sum(
            bias.at(next(count for layer, count in heads.items() if layer in stack), 0, 0)
            for bias, stack in zip(self.biases, self.stacks, strict=True)
            if bias.heads
        )
