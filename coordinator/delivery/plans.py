"""Reads rollout plans, as programs write them and as people type them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from coordinator.store.plan import Plan
from edge_sdk.errors import ConfigurationError


def read_plan(says: Mapping[str, object]) -> Plan:
    """A plan from values by the names of :class:`Plan`'s fields. Raises ``ConfigurationError`` for invalid ones."""
    try:
        return msgspec.convert(says, Plan)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"plan: {error}") from error


def typed_plan(
    *,
    stages: str,
    success_percent: float,
    error_percent: float,
    health_interval_s: float,
    trial: Mapping[str, float | None],
) -> Plan:
    """:func:`read_plan`, but with ``stages`` separated by commas, and shares in percent."""
    return read_plan(
        {
            "stages": [part.strip() for part in stages.split(",")],
            "success_share": success_percent / 100,
            "error_share": error_percent / 100,
            "health_interval_s": health_interval_s,
            "trial": trial,
        }
    )
