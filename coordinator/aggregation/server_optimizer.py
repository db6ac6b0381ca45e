"""Server optimizers: add the mean delta as it is, or by moments that the server keeps from round to round.

With g the negated mean delta (a pseudo-gradient), for every entry that some update covers:

    fedavg   x ← x - η·g
    fedavgm  m ← β₁·m + g;  x ← x - η·m                                            (arXiv 1909.06335, § 4.3)
    fedadam  m ← β₁·m + (1 - β₁)·g;  v ← β₂·v + (1 - β₂)·g²;  x ← x - η·m / (√v + τ)
    fedyogi  the same but  v ← v - (1 - β₂)·g²·sign(v - g²)                        (arXiv 2003.00295, algorithm 2)

Initially m = 0 and v = τ². There is no bias correction. Where no update covers an entry, x, m and v do not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from edge_sdk.elastic.slicing import Array
from edge_sdk.errors import ConfigurationError


class OptimizerKind(str, Enum):
    """The rules above."""

    FEDAVG = "fedavg"
    FEDAVGM = "fedavgm"
    FEDADAM = "fedadam"
    FEDYOGI = "fedyogi"

    @property
    def moments(self) -> tuple[str, ...]:
        """The names of what is kept for every entry."""
        return {OptimizerKind.FEDAVG: (), OptimizerKind.FEDAVGM: ("momentum",)}.get(self, ("momentum", "variance"))


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """``rate`` is η, of which FedAdam and FedYogi need about 0.01, far below FedAvg's 1. ``tau`` is τ."""

    kind: OptimizerKind = OptimizerKind.FEDAVG
    rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if not (0 < self.rate < math.inf and 0 < self.tau < math.inf):
            raise ConfigurationError(
                f"server optimizer has rate {self.rate} and tau {self.tau}; both must be finite and greater than 0"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigurationError(
                f"server optimizer has beta1 {self.beta1} and beta2 {self.beta2}; each must be from 0 to below 1"
            )

    def moments_of(self, name: str, values: Array, known: Mapping[str, Array]) -> dict[str, Array]:
        """The moments of the parameter ``name``, in fresh arrays: ``known`` ones, or what they start with."""
        start = {"momentum": 0.0, "variance": self.tau**2}
        return {
            full_name: np.array(known[full_name]) if full_name in known else np.full_like(values, start[kind])
            for kind, full_name in ((kind, f"{kind}.{name}") for kind in self.kind.moments)
        }

    def descend(self, gradient: Array, moments: Sequence[Array]) -> None:
        """Turn the pseudo-gradient of some entries into what is subtracted from them; all arrays change in place."""
        if self.kind is OptimizerKind.FEDAVG:
            if self.rate != 1:
                np.multiply(gradient, np.float32(self.rate), out=gradient)
        elif self.kind is OptimizerKind.FEDAVGM:
            self._with_momentum(gradient, moments[0])
        else:
            self._adaptively(gradient, moments[0], moments[1])

    def _with_momentum(self, gradient: Array, momentum: Array) -> None:
        momentum *= np.float32(self.beta1)
        momentum += gradient
        np.multiply(momentum, np.float32(self.rate), out=gradient)

    def _adaptively(self, gradient: Array, momentum: Array, variance: Array) -> None:
        square = gradient * gradient
        momentum *= np.float32(self.beta1)
        gradient *= np.float32(1 - self.beta1)
        momentum += gradient
        if self.kind is OptimizerKind.FEDYOGI:
            np.sign(variance - square, out=gradient)
            square *= gradient
            variance -= np.float32(1 - self.beta2) * square
        else:
            variance *= np.float32(self.beta2)
            variance += np.float32(1 - self.beta2) * square
        np.sqrt(variance, out=gradient)
        gradient += np.float32(self.tau)
        np.divide(momentum, gradient, out=gradient)
        gradient *= np.float32(self.rate)
