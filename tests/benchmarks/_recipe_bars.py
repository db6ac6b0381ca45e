"""What the default recipe has to reach, in points of accuracy; from means over seeds to what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from tests.benchmarks._recipe_rounds import ABLE, EVERYONE_FULL, EVERYONE_QUARTER, RECIPE, WIDTHS, Outcome

ByArm = Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and the least that it must be; ``shortfall`` is positive where it is missed."""

    name: str
    figure: float
    least: float

    @property
    def shortfall(self) -> float:
        """Points."""
        return self.least - self.figure


@dataclass(frozen=True, slots=True)
class _Means:
    """Of one arm over its seeds: percent right by width and of the size that is deployed, and bytes of its updates."""

    width: Mapping[str, float]
    deployed: float
    bytes_up: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> _Means:
        return cls(
            {width: mean(outcome.test[width] for outcome in outcomes) for width in WIDTHS},
            mean(outcome.deployed for outcome in outcomes),
            mean(outcome.bytes_up for outcome in outcomes),
        )


def natural(by_arm: ByArm) -> list[Bar]:
    """Every size near what nobody could afford, at less upload; every size above what the able alone reach."""
    recipe, full, able, quarter = _means(by_arm)
    upload_percent = 100 * recipe.bytes_up / full.bytes_up
    return [
        *(Bar(f"{width}, within 1.5 of A's full", recipe.width[width], full.width["full"] - 1.5) for width in WIDTHS),
        Bar("upload, at most 65 % of A's", -upload_percent, -65.0),
        Bar("full, B's full - 1", recipe.width["full"], able.width["full"] - 1),
        Bar("half, B's half + 5", recipe.width["half"], able.width["half"] + 5),
        Bar("quarter, B's quarter + 15", recipe.width["quarter"], able.width["quarter"] + 15),
        Bar("quarter, C's quarter - 1", recipe.width["quarter"], quarter.width["quarter"] - 1),
    ]


def tied(by_arm: ByArm) -> list[Bar]:
    """Where weak devices hold what the able ones lack, their data must come through."""
    recipe, full, able, _ = _means(by_arm)
    return [
        Bar("deployed, B's deployed + 2", recipe.deployed, able.deployed + 2),
        Bar("full, within 2.5 of A's full", recipe.width["full"], full.width["full"] - 2.5),
    ]


def capacity(by_arm: ByArm) -> list[Bar]:
    """Where a quarter of the model cannot do the task, the full one must be worth its training."""
    recipe, _, _, quarter = _means(by_arm)
    return [Bar("full, C's best size + 3", recipe.width["full"], max(quarter.width.values()) + 3)]


def cut(taylor: Mapping[str, float], l1: Mapping[str, float]) -> list[Bar]:
    """Percent right by width of one trained model, its units ranked by first-order salience or by L1."""
    return [
        Bar("three quarters by Taylor, full - 1", taylor["three quarters"], taylor["full"] - 1),
        Bar("half by Taylor, full - 5", taylor["half"], taylor["full"] - 5),
        Bar("half by Taylor, half by L1 + 8", taylor["half"], l1["half"] + 8),
    ]


def _means(by_arm: ByArm) -> tuple[_Means, _Means, _Means, _Means]:
    recipe, full, able, quarter = (
        _Means.of(by_arm[arm.name]) for arm in (RECIPE, EVERYONE_FULL, ABLE, EVERYONE_QUARTER)
    )
    return recipe, full, able, quarter


BARS: Mapping[str, Callable[[ByArm], list[Bar]]] = {
    "motion": natural,
    "motion-tied": tied,
    "news": natural,
    "gestures": capacity,
}
