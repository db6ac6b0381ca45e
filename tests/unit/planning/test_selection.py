from __future__ import annotations

from collections import Counter
from datetime import datetime, time, timedelta, timezone

import pytest

from coordinator.planning.selection import DataSchema, Schedule, Targets, drawn_from
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.protocol.messages import Holding

NOON = datetime(2027, 3, 1, 12).astimezone()
DAY = (time(8), time(18))
NIGHT = (time(22), time(6))


def texts(count: int) -> Holding:
    return Holding(suits=ModelTask.TEXT_CLASSIFICATION, examples=count)


def at(hour: int, minute: int = 0) -> float:
    return NOON.replace(hour=hour, minute=minute).timestamp()


@pytest.mark.parametrize(
    ("targets", "included"),
    [
        (Targets(), True),
        (Targets(devices=("pi-*",)), True),
        (Targets(devices=("jetson-*", "pi-?")), True),
        (Targets(devices=("jetson-*",)), False),
        (Targets(devices=("PI-*",)), False),
        (Targets(devices=("pi-*",), profiles=("jetson-*",)), False),
        (Targets(profiles=("raspberry-pi-[45]*",)), True),
        (Targets(devices=()), False),
        (Targets(groups=("greenhouse", "canary")), True),
        (Targets(devices=("pi-*",), groups=("default",)), False),
    ],
)
def test_target_matches_a_pattern_of_each_kind(targets: Targets, included: bool) -> None:
    assert targets.include("pi-7", "raspberry-pi-4-4gb", "greenhouse") is included


@pytest.mark.parametrize(
    ("holding", "suits", "refusal"),
    [
        (None, ModelTask.TEXT_CLASSIFICATION, None),
        (texts(20), ModelTask.TEXT_CLASSIFICATION, None),
        (texts(20), None, None),
        (texts(19), ModelTask.TEXT_CLASSIFICATION, "it has 19 examples to train on, and needs 20"),
        (texts(19), None, "it has 19 examples to train on, and needs 20"),
        (
            texts(20),
            ModelTask.IMAGE_CLASSIFICATION,
            "its examples are for text-classification, the model is for image-classification",
        ),
    ],
)
def test_schema_says_why_examples_will_not_do(
    holding: Holding | None, suits: ModelTask | None, refusal: str | None
) -> None:
    assert DataSchema(min_examples=20).refusal(holding, suits) == refusal


@pytest.mark.parametrize(
    ("hours", "now_s", "allowed"),
    [
        (None, at(3), True),
        (DAY, at(8), True),
        (DAY, at(17, 59), True),
        (DAY, at(18), False),
        (DAY, at(7, 59), False),
        (NIGHT, at(22), True),
        (NIGHT, at(0), True),
        (NIGHT, at(5, 59), True),
        (NIGHT, at(6), False),
        (NIGHT, at(12), False),
    ],
)
def test_round_opens_within_its_hours(hours: tuple[time, time] | None, now_s: float, allowed: bool) -> None:
    assert Schedule(hours=hours).allows(now_s, None) is allowed


def test_no_round_opens_before_the_schedule_begins() -> None:
    utc = Schedule(begins=NOON.astimezone(timezone.utc))
    local = Schedule(begins=NOON.replace(tzinfo=None))
    for schedule in (utc, local):
        assert not schedule.allows((NOON - timedelta(seconds=1)).timestamp(), None)
        assert schedule.allows(NOON.timestamp(), None)


def test_round_opens_so_long_after_the_last_and_a_clock_that_was_set_back_delays_nothing() -> None:
    daily = Schedule(every_s=86400.0)
    assert not daily.allows(1_000_000.0, 1_000_000.0 - 86_399)
    assert daily.allows(1_000_000.0, 1_000_000.0 - 86_400)
    assert daily.allows(1_000_000.0, None)
    assert daily.allows(1_000_000.0, 1_000_001.0)


def test_draw_is_fair_and_the_same_for_the_same_round() -> None:
    devices = [f"device-{number}" for number in range(10)]
    assert drawn_from(devices, None, seed=0, round_number=1) == tuple(devices)
    assert drawn_from(devices, 20, seed=0, round_number=1) == tuple(devices)
    drawn = [drawn_from(devices, 3, seed=0, round_number=number) for number in range(1000)]
    assert drawn == [drawn_from(reversed(devices), 3, seed=0, round_number=number) for number in range(1000)]
    times = Counter(device for some in drawn for device in some)
    assert min(times.values()) > 250, times
    assert {len({*some}) for some in drawn} == {3}
