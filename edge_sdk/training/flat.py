"""One flat array that holds many: what an optimizer passes over at once, and what buffers are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_sdk.elastic.slicing import Shapes

Flat = NDArray[np.float32]


def zeros(shapes: Shapes) -> Flat:
    """A private array with room for ``shapes`` end to end, resident from now on, not from its first use on."""
    return np.full(sum(math.prod(shape) for shape in shapes.values()), 0, dtype=np.float32)


def views_of(flat: Flat, shapes: Shapes) -> dict[str, Flat]:
    """An array of each shape in the memory of ``flat``, which may be longer, end to end."""
    views, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        views[name] = flat[start:stop].reshape(shape)
        start = stop
    return views


def flat_copy(arrays: Mapping[str, Flat]) -> tuple[Flat, dict[str, Flat]]:
    """A flat array with the values of ``arrays``, and a view of it for each."""
    shapes = {name: values.shape for name, values in arrays.items()}
    flat = zeros(shapes)
    views = views_of(flat, shapes)
    for name, values in arrays.items():
        np.copyto(views[name], values)
    return flat, views
