"""How a round's updates become the next version: the one entry to this package for those who run rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from coordinator.aggregation import low_rank
from coordinator.aggregation.coverage import Aggregated, UpdateSource, advance
from coordinator.aggregation.low_rank import Folding, adapted_modules, factor_names
from coordinator.aggregation.server_optimizer import OptimizerKind, ServerOptimizer
from edge_sdk.elastic.slicing import Array
from edge_sdk.errors import ConfigurationError

_FEDAVG = ServerOptimizer()


class AdapterMerge(str, Enum):
    """What is done with LoRA's factors: ``mean`` averages each as any parameter, the others are in :mod:`low_rank`."""

    MEAN = "mean"
    SVD = "svd"
    STACK = "stack"


@dataclass(frozen=True, slots=True)
class AggregationRule:
    """``floor`` is c, and ``optimizer`` has η, of the formula in :mod:`coordinator.aggregation.coverage`."""

    floor: float = 0.25
    optimizer: ServerOptimizer = _FEDAVG
    adapters: AdapterMerge = AdapterMerge.SVD

    def __post_init__(self) -> None:
        """Raise ``ConfigurationError`` where a value is out of range."""
        if not 0 <= self.floor <= 1:
            raise ConfigurationError(f"aggregation floor is {self.floor}; it must be from 0 to 1")

    def check_adapters(self) -> None:
        """Raise ``ConfigurationError`` where this cannot be done to a model with LoRA adapters."""
        if self.adapters is not AdapterMerge.MEAN and self.optimizer.kind is not OptimizerKind.FEDAVG:
            raise ConfigurationError(
                f"server optimizer {self.optimizer.kind.value} keeps moments of every entry, which adapters merged by "
                f"{self.adapters.value} do not keep from round to round; use fedavg, or merge adapters by mean"
            )


def aggregate(
    base: Mapping[str, Array],
    updates: Sequence[UpdateSource],
    rule: AggregationRule,
    moments: Mapping[str, Array],
    folding: Folding | None = None,
) -> Aggregated:
    """The next parameters, in fresh arrays: a pure function of ``base``, ``moments`` and the set of ``updates``.

    ``base`` holds what devices train and, where adapters are merged by ``stack``, the weights of the adapted modules
    too; ``folding`` says how they are stored. ``moments`` are those of the last round, none at first. Raises
    ``ConfigurationError`` where the rule does not fit the model, and as
    :func:`~coordinator.aggregation.coverage.opened` and :func:`~coordinator.aggregation.low_rank.merge`.
    """
    modules = [] if rule.adapters is AdapterMerge.MEAN else adapted_modules(base)
    if not modules:
        return advance(base, updates, floor=rule.floor, optimizer=rule.optimizer, moments=moments)
    rule.check_adapters()
    if rule.adapters is AdapterMerge.STACK and folding is None:
        raise ConfigurationError("adapters cannot be merged by stack without their scale; pass how they are folded")
    factors = {name for module in modules for name in factor_names(module)}
    others = {name: values for name, values in base.items() if name not in factors}
    rest = advance(others, updates, floor=rule.floor, optimizer=rule.optimizer, moments=moments)
    merged = low_rank.merge(
        base,
        updates,
        floor=rule.floor,
        rate=rule.optimizer.rate,
        folding=folding if rule.adapters is AdapterMerge.STACK else None,
    )
    parameters = rest.parameters | merged
    return Aggregated({name: parameters[name] for name in base}, rest.moments)
