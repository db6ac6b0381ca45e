"""Which nested, narrower submodels each training step also trains, so that these are accurate on their own."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from edge_sdk.elastic.submodel import Architecture, Submodel
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import Share

_MAX_SHARES = 3


class Nesting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The widths to nest, as ``shares`` of the whole model's width (FjORD, arXiv 2102.13451, section 3.2).

    ``is_random`` adds a width between the smallest share and the submodel's own, drawn anew for every round. With one
    share this is the sandwich rule: the smallest, a random one and the largest (arXiv 1903.05134, section 3). Raises
    ``ConfigurationError`` for more than three shares, since each is trained in every step.
    """

    shares: tuple[Share, ...] = (0.25,)
    is_random: bool = False

    def __post_init__(self) -> None:
        if len(self.shares) > _MAX_SHARES:
            raise ConfigurationError(f"{len(self.shares)} nested widths: give at most {_MAX_SHARES}")


def nested_widths(
    submodel: Submodel, architecture: Architecture, nesting: Nesting, drawn: float = 1.0
) -> tuple[Submodel, ...]:
    """The prefixes of ``submodel`` that each step also trains, widest first; none if it is itself as narrow.

    ``drawn``, 0 to 1, places the random width between the narrowest and the submodel's own (see :func:`draw`); 1 costs
    most.
    """
    shares = [*nesting.shares]
    if nesting.is_random:
        least, own = min(shares, default=0.0), max(submodel.heads) / architecture.heads
        shares.append(least + drawn * (own - least))
    prefixes = {_prefix(submodel, architecture, share): None for share in sorted(shares, reverse=True)}
    return tuple(prefix for prefix in prefixes if prefix != _unrolled(submodel))


def draw(seed: int, round_number: int) -> float:
    """Where a round's random width lies, from 0 to 1; the same for all of its devices."""
    return float(np.random.default_rng((seed, round_number)).random())


def _prefix(submodel: Submodel, architecture: Architecture, share: float) -> Submodel:
    """At most ``share`` of the whole model's units in every layer of ``submodel``, and at least one."""

    def within(own: int, most: int) -> int:
        return min(own, max(1, round(share * most)))

    return Submodel(
        submodel.layers,
        tuple(within(heads, architecture.heads) for heads in submodel.heads),
        tuple(within(ffn, architecture.ffn) for ffn in submodel.ffn),
        within(submodel.adapter_rank, architecture.adapter_rank),
    )


def _unrolled(submodel: Submodel) -> Submodel:
    """Nested submodels count from the first of the submodel's own units, wherever its window begins."""
    return replace(submodel, first_head=0, first_neuron=0)
