"""FedProx on a device: a term that pulls weights towards those that the round began with."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_sdk.elastic.slicing import Array
from edge_sdk.protocol.tensors import read_tensors

_BLOCK = 1 << 16  # entries


class ProximalTerm:
    """The gradient of μ/2 · ‖w - w_first‖² (Li et al. 2020, arXiv 1812.06127, eq. 2); ``file`` holds the first weights.

    These are mapped, read block by block, and released at once, so that they do not add to resident memory.
    """

    def __init__(self, file: Path, mu: float) -> None:
        self._mu = mu
        with file.open("rb") as opened:
            self._pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._first = read_tensors(memoryview(self._pages))
        self._scratch = np.zeros(_BLOCK, dtype=np.float32)

    def add(self, gradients: Mapping[str, Array], weights: Mapping[str, Array]) -> None:
        """Add the term's gradient at ``weights`` to ``gradients``, in place."""
        for name, gradient in gradients.items():
            arrays = [array.reshape(-1) for array in (gradient, weights[name], self._first[name])]
            for start in range(0, gradient.size, _BLOCK):
                total, now, first = (array[start : start + _BLOCK] for array in arrays)
                pull = np.subtract(now, first, out=self._scratch[: now.size])
                pull *= self._mu
                total += pull
                self._pages.madvise(mmap.MADV_DONTNEED)
