"""Builds one metric with all its samples, as a collector yields it; samples are keyed by the values of their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_L = TypeVar("_L", bound=tuple[str, ...])


def gauge(name: str, about: str, samples: Mapping[_L, float], *labels: str) -> Metric:
    """A metric that rises and falls."""
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def counter(name: str, about: str, samples: Mapping[_L, float], *labels: str) -> Metric:
    """A metric that only rises, except that a restart may reset it; ``name`` ends in ``_total``."""
    family = CounterMetricFamily(name, about, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family
