"""One metric with all its samples, as a collector yields it: by the values of its labels, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_L = TypeVar("_L", bound=tuple[str, ...])


def gauge(name: str, about: str, samples: Mapping[_L, float], *labels: str) -> Metric:
    """What goes up and down."""
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def counter(name: str, about: str, samples: Mapping[_L, float], *labels: str) -> Metric:
    """What only rises, but for a restart; ``name`` ends in ``_total``."""
    family = CounterMetricFamily(name, about, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family
