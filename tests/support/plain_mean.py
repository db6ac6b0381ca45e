"""The mean of a round's updates by coverage, of adapters' factors too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coordinator.aggregation import rule
from coordinator.aggregation.coverage import UpdateSource
from coordinator.aggregation.rule import AdapterMerge, AggregationRule
from coordinator.aggregation.server_optimizer import ServerOptimizer
from edge_sdk.elastic.slicing import Array


def aggregate(
    base: Mapping[str, Array], updates: Sequence[UpdateSource], *, floor: float, rate: float = 1.0
) -> dict[str, Array]:
    """The next parameters, without moments of earlier rounds."""
    mean = AggregationRule(floor, ServerOptimizer(rate=rate), AdapterMerge.MEAN)
    return rule.aggregate(base, updates, mean, {}).parameters
