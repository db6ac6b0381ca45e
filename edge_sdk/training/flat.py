"""Flat arrays with many parameters end to end, for optimizers, which process them at once, and for buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.slicing import Shapes

Flat = NDArray[np.float32]


def zeros(shapes: Shapes) -> Flat:
    """A new array of zeros with room for ``shapes`` end to end. All its pages are resident at once, not when used."""
    return np.full(sum(math.prod(shape) for shape in shapes.values()), 0, dtype=np.float32)


def views_of(flat: Flat, shapes: Shapes) -> dict[str, Flat]:
    """Views of ``flat`` with these shapes, end to end; ``flat`` may be longer."""
    views, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        views[name] = flat[start:stop].reshape(shape)
        start = stop
    return views


def flat_copy(arrays: Mapping[str, Flat]) -> tuple[Flat, dict[str, Flat]]:
    """A flat copy of ``arrays``, and a view of it for each of them."""
    shapes = {name: values.shape for name, values in arrays.items()}
    flat = zeros(shapes)
    views = views_of(flat, shapes)
    for name, values in arrays.items():
        np.copyto(views[name], values)
    return flat, views
