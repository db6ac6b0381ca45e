"""A submodel as pure data: which layers, and how many heads and FFN neurons of each.

After the foundation model was permuted by salience once, the most salient units of a layer come first, so a submodel is
a *prefix* of every layer that it keeps: counts are enough, no index lists (RaFFM, arXiv 2310.00247, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge_sdk.errors import ConfigurationError


class TrainablePart(str, Enum):
    """Which parameters of a submodel a device trains; the others stay frozen and are fetched once."""

    ALL = "all"
    NO_EMBEDDINGS = "no-embeddings"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a transformer, as read from its configuration once; counts, no units.

    ``head_size`` never changes with the width: it fixes the softmax scale 1/sqrt(head_size).
    """

    family: str
    layers: int
    heads: int
    head_size: int
    ffn: int
    hidden: int
    vocabulary: int
    positions: int
    labels: int


@dataclass(frozen=True, slots=True)
class Submodel:
    """The part of a model that one device trains or runs.

    ``layers`` are the kept layers' indices in the full model, rising; ``heads[i]`` and ``ffn[i]`` are the prefix widths
    of layer ``layers[i]``.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    ffn: tuple[int, ...]

    def check(self, architecture: Architecture) -> None:
        """Raise ``ConfigurationError`` where this asks for more than ``architecture`` has, or for nothing."""
        if not len(self.layers) == len(self.heads) == len(self.ffn) > 0:
            msg = f"submodel needs one head count and one FFN width per kept layer, got {self}"
            raise ConfigurationError(msg)
        if (
            list(self.layers) != sorted(set(self.layers))
            or not 0 <= self.layers[0] <= self.layers[-1] < architecture.layers
        ):
            msg = f"submodel layers {self.layers} must rise within 0..{architecture.layers - 1}"
            raise ConfigurationError(msg)
        for unit, counts, most in (
            ("heads", self.heads, architecture.heads),
            ("FFN neurons", self.ffn, architecture.ffn),
        ):
            if not all(1 <= count <= most for count in counts):
                msg = f"submodel asks for {counts} {unit} a layer; the model has 1..{most}"
                raise ConfigurationError(msg)

    @property
    def width(self) -> str:
        """For people: heads and FFN neurons of a uniform submodel, or their ranges."""
        return f"{_span(self.heads)} heads, {_span(self.ffn)} FFN, {len(self.layers)} layers"


def full(architecture: Architecture) -> Submodel:
    """The submodel that is the whole model."""
    return uniform(architecture, architecture.heads)


def uniform(architecture: Architecture, heads: int) -> Submodel:
    """Every layer, ``heads`` heads in each, and the same share of the FFN neurons, rounded down (at least one)."""
    ffn = max(1, architecture.ffn * heads // architecture.heads)
    count = architecture.layers
    submodel = Submodel(tuple(range(count)), (heads,) * count, (ffn,) * count)
    submodel.check(architecture)
    return submodel


def _span(counts: tuple[int, ...]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}-{high}"
