"""The narrower prefix of a submodel that every step trains too, so that it stays good by itself.

Widths share weights: the gradients of both losses are summed where they overlap (FjORD, arXiv 2102.13451, section 3.2,
without its distillation term).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import Array, Slices, extract, shapes_of, slices_of
from edge_sdk.elastic.submodel import Architecture, Submodel
from edge_sdk.errors import ConfigurationError


class NestedPrefix:
    """``nested`` within the parameters of the trained submodel.

    ``values`` holds copies of those parameters that are narrower, none else. Raises ``ConfigurationError`` where
    ``nested`` has other layers than the submodel, or is wider.
    """

    def __init__(self, nested: Submodel, architecture: Architecture, parameters: Mapping[str, Array]) -> None:
        shapes = {name: values.shape for name, values in parameters.items()}
        slices = slices_of(nested, architecture, family_of(architecture.family), shapes)
        narrow = shapes_of(slices)
        if narrow.keys() != shapes.keys() or any(np.greater(narrow[name], shapes[name]).any() for name in shapes):
            raise ConfigurationError(
                f"nested submodel ({nested.width}) is no prefix of the one to train, layer by layer"
            )
        self._slices: Slices = {name: axes for name, axes in slices.items() if narrow[name] != shapes[name]}
        self.values = extract(parameters, self._slices)

    def refresh(self, weights: Mapping[str, Array]) -> None:
        """Take over what training changed in ``weights``."""
        for name in self.values.keys() & weights.keys():
            self.values[name][...] = weights[name][self._slices[name]]

    def add(self, gradients: Mapping[str, Array], inner: Mapping[str, Array]) -> None:
        """Add the prefix's gradients, ``inner``, to the submodel's, in place."""
        for name, values in inner.items():
            gradients[name][self._slices.get(name, ...)] += values
