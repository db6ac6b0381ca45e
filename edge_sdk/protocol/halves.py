"""Conversion between float32 and float16, several times as fast as NumPy's."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
_BLOCK = 32 * 1024  # entries; together with everything computed from them, they fit a processor's cache
_MAX_HALF = np.float32(65504)


def to_half(values: Floats) -> Halves:
    """The float16 nearest to each of ``values``, ties away from zero; values beyond the range become ±65504.

    From 2⁻¹⁴ on, a float16 is the float32's upper bits with another exponent bias. Below, it counts multiples of 2⁻²⁴,
    as the lowest bits of a float32 do after 0.5 is added. Both are computed, and the larger one is right.
    """
    halves, signed = np.empty(values.size, np.dtype("<f2")), values.reshape(-1)
    for first in range(0, values.size, _BLOCK):
        part = signed[first : first + _BLOCK]
        sizes = np.minimum(np.abs(part), _MAX_HALF)
        counts = (np.minimum(sizes, np.float32(2**-14)) + np.float32(0.5)).view(np.int32)
        counts -= 0x3F000000
        bits = sizes.view(np.int32)
        bits += 0x1000 - (112 << 23)
        bits >>= 13
        np.maximum(bits, counts, out=bits)
        bits |= (part.view(np.int32) >> 16) & 0x8000
        halves.view(np.uint16)[first : first + _BLOCK] = bits
    return halves.reshape(values.shape)


def from_half(halves: Halves, into: Floats) -> None:
    """Write the flat ``halves`` to the flat ``into`` as float32, by a table of all values."""
    np.take(_every_half(), halves.view(np.uint16), out=into, mode="clip")


@cache
def _every_half() -> Floats:
    """The float32 value of each float16, by its bits: (65536,)."""
    with np.errstate(invalid="ignore"):  # Arm processors flag the signalling NaNs among them
        return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
