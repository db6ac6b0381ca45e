"""Nested widths: every step also trains narrower prefixes of the submodel, so that they stay accurate by themselves.

Widths share weights: the gradients of all losses are summed where the widths overlap. The whole submodel learns from
the labels and teaches the narrower ones in the same step (FjORD, arXiv 2102.13451, section 3.2, with all widths in each
step). If text is generated, all widths learn from the text: a teacher's targets would take a vocabulary per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import Array, Region, Shapes, Slices, extract, shapes_of, slices_of
from edge_sdk.elastic.submodel import Architecture, ModelTask, Submodel
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import Recipe
from edge_sdk.training.flat import Flat, views_of, zeros


def nested_slices(nested: Submodel, architecture: Architecture, shapes: Shapes) -> Slices:
    """The parts that ``nested`` holds of a trained submodel's arrays, of ``shapes``; only of those that it narrows.

    ``nested`` counts from the submodel's first units, even if the submodel is a rolling window. Raises
    ``ConfigurationError`` if it has other layers than the submodel, or is wider.
    """
    prefix = replace(nested, first_head=0, first_neuron=0)
    slices = slices_of(prefix, architecture, family_of(architecture.family), shapes)
    if slices.keys() != shapes.keys() or not all(_is_within(slices[name], shapes[name]) for name in shapes):
        raise ConfigurationError(f"nested submodel ({nested.width}) is no prefix of the one to train, layer by layer")
    return {name: region for name, region in slices.items() if region.shape != shapes[name]}


class NestedPrefix:
    """One nested submodel: ``values``, in ``buffer``, are copies of the parts ``slices`` that it narrows."""

    def __init__(self, slices: Slices, buffer: Flat) -> None:
        self._slices = slices
        self.values = views_of(buffer, shapes_of(slices))

    def refresh(self, parameters: Mapping[str, Array]) -> None:
        """Copy the values from the submodel's ``parameters``."""
        extract(parameters, self._slices, into=self.values)

    def add(self, gradients: Mapping[str, Array], inner: Mapping[str, Array]) -> None:
        """Add the prefix's gradients, ``inner``, to the submodel's, in place."""
        for name, values in inner.items():
            if name in self._slices:
                for whole, part in self._slices[name].rectangles():
                    gradients[name][whole] += values[part]
            else:
                gradients[name][...] += values


def nested_prefixes(
    nested: Sequence[Submodel], architecture: Architecture, parameters: Mapping[str, Array]
) -> list[NestedPrefix]:
    """The nested submodels of ``parameters``. They share one buffer, so each has to be refreshed before its use."""
    shapes = {name: values.shape for name, values in parameters.items()}
    slices = [nested_slices(submodel, architecture, shapes) for submodel in nested]
    largest = max(slices, key=lambda part: sum(region.size for region in part.values()), default={})
    buffer = zeros(shapes_of(largest))
    return [NestedPrefix(part, buffer) for part in slices]


def has_teacher(recipe: Recipe, task: ModelTask) -> bool:
    """Whether nested submodels learn from the whole one."""
    return recipe.distillation > 0 and not task.generates


def taught_targets(targets: Array, logits: Array, offset: Array, share: float) -> Array:
    """``share`` · softmax(``logits`` + ``offset``) + (1 - ``share``) · ``targets``, all float32 (..., labels).

    ``logits`` are the teacher's; ``offset`` (labels,) is the one that the loss also adds to the nested submodels'.
    Rows of zeros in ``targets``, which do not count, stay zeros.
    """
    taught = logits + offset
    taught -= taught.max(axis=-1, keepdims=True)
    np.exp(taught, out=taught)
    taught *= share * targets.sum(axis=-1, keepdims=True) / taught.sum(axis=-1, keepdims=True)
    taught += (1 - share) * targets
    return taught


def _is_within(region: Region, shape: tuple[int, ...]) -> bool:
    return all(ranges[-1].stop <= size for ranges, size in zip(region.axes, shape, strict=True))
