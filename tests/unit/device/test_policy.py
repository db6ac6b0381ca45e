"""The owner's policy: each rule at its edge, and what unknown values mean."""

from __future__ import annotations

import msgspec
import pytest

from edge_sdk.device.policy import Denied, Policy, may_train
from edge_sdk.protocol.messages import Snapshot

MIB = 1 << 20
UNKNOWN = Snapshot(
    memory_total_bytes=512 * MIB,
    memory_available_bytes=256 * MIB,
    training_memory_bytes=128 * MIB,
    inference_memory_bytes=64 * MIB,
    threads=1,
)
CHARGING_ONLY = Policy(charging_only=True)


def decide(policy: Policy, **values: float | bool | None) -> str | None:
    denied = may_train(policy, msgspec.structs.replace(UNKNOWN, **values))
    return None if denied is None else denied.reason


def test_nothing_known_does_not_forbid() -> None:
    assert may_train(Policy(), UNKNOWN) is None
    assert may_train(CHARGING_ONLY, UNKNOWN) is None


@pytest.mark.parametrize(
    ("share", "charging", "allowed"),
    [(0.19, False, False), (0.2, False, True), (0.19, None, False), (0.0, True, True), (None, False, True)],
)
def test_battery_below_the_floor_denies_unless_charging(
    share: float | None, charging: bool | None, allowed: bool
) -> None:
    reason = decide(Policy(battery_floor_share=0.2), battery_share=share, charging=charging)
    assert reason == (None if allowed else f"battery at {share:.0%}, the policy's floor is 20%")


@pytest.mark.parametrize(
    ("share", "charging", "allowed"),
    [(1.0, True, True), (1.0, False, False), (1.0, None, False), (None, False, False), (None, True, True)],
)
def test_charging_only_asks_for_proof(share: float | None, charging: bool | None, allowed: bool) -> None:
    reason = decide(CHARGING_ONLY, battery_share=share, charging=charging)
    assert reason == (None if allowed else "the policy allows training on a charger only")


def test_heat_above_the_ceiling_denies_with_both_values() -> None:
    assert decide(Policy(max_temperature_c=80), temperature_c=80.0) is None
    assert decide(Policy(max_temperature_c=80), temperature_c=91.0) == "91 °C, the policy's ceiling is 80 °C"


def test_disk_below_the_least_denies_with_both_values() -> None:
    policy = Policy(min_disk_free_bytes=256 * MIB)
    assert decide(policy, disk_free_bytes=256 * MIB) is None
    assert decide(policy, disk_free_bytes=10 * MIB) == "10 MiB free on disk, the policy asks for 256 MiB"


def test_first_broken_rule_is_the_one_that_is_named() -> None:
    broken = msgspec.structs.replace(UNKNOWN, battery_share=0.1, charging=False, temperature_c=99.0, disk_free_bytes=0)
    assert may_train(CHARGING_ONLY, broken) == Denied("the policy allows training on a charger only")
