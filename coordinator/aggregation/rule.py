"""How a round's updates become the next version: the entry point of this package.

How adapters are merged, and what of it is exact:

    LoRA   as :class:`AdapterMerge` says: the mean of the products B·A, exact except for what ``svd`` cuts at the rank
    DoRA   the same for B·A, and each magnitude by coverage. Direction and magnitude are averaged separately: the mean
           of equal updates is that update, but the mean of different ones is not the mean of their merged weights.
           ``stack`` is exact here, too: W + s·B·A stays the same, and so does the norm that divides the magnitude
    IA3    each scale by coverage, whatever the merge. Weights are linear in it, so this is the mean of merged weights
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from coordinator.aggregation import low_rank
from coordinator.aggregation.coverage import Aggregated, UpdateSource, advance
from coordinator.aggregation.low_rank import Folding, adapted_modules, factor_names
from coordinator.aggregation.server_optimizer import OptimizerKind, ServerOptimizer
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import AdapterMethod
from edge_sdk.errors import ConfigurationError

_FEDAVG = ServerOptimizer()


class AdapterMerge(str, Enum):
    """How the factors of LoRA and DoRA are merged: ``mean`` averages each like any parameter.

    The others are explained in :mod:`low_rank`.
    """

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

    def check_adapters(self, method: AdapterMethod = AdapterMethod.LORA) -> None:
        """Raise ``ConfigurationError`` if this rule cannot be applied to adapters of ``method``."""
        if method is AdapterMethod.IA3:
            if self.adapters is AdapterMerge.STACK:
                raise ConfigurationError("ia3 adapters have no factors to stack; merge adapters by mean")
        elif self.adapters is not AdapterMerge.MEAN and self.optimizer.kind is not OptimizerKind.FEDAVG:
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
