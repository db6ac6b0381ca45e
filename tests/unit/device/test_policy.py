"""The owner's policy: each rule at its edge, what unknown values mean, and how a person writes it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_sdk.device.policy import (
    MIB,
    Denied,
    Moment,
    Policy,
    QuietHours,
    Spent,
    may_begin,
    may_train,
    may_transfer,
)
from edge_sdk.errors import ConfigurationError, SettingError
from edge_sdk.protocol.messages import Snapshot
from edge_sdk.settings import load_settings

UNKNOWN = Snapshot(
    memory_total_bytes=512 * MIB,
    memory_available_bytes=256 * MIB,
    training_memory_bytes=128 * MIB,
    inference_memory_bytes=64 * MIB,
    threads=1,
)
NOON = Moment(UNKNOWN, 12 * 60)
CHARGING_ONLY = Policy(charging_only=True)


def moment(**values: float | bool | None) -> Moment:
    return Moment(msgspec.structs.replace(UNKNOWN, **values), NOON.minute)


def reason(denied: Denied | None) -> str | None:
    return None if denied is None else denied.reason


def decide(policy: Policy, **values: float | bool | None) -> str | None:
    return reason(may_train(policy, moment(**values)))


def test_nothing_known_does_not_forbid() -> None:
    assert may_begin(Policy(), NOON) is None
    assert may_begin(CHARGING_ONLY, NOON) is None


@pytest.mark.parametrize(
    ("share", "charging", "allowed"),
    [(0.19, False, False), (0.2, False, True), (0.19, None, False), (0.0, True, True), (None, False, True)],
)
def test_battery_below_the_floor_denies_unless_charging(
    share: float | None, charging: bool | None, allowed: bool
) -> None:
    said = decide(Policy(battery_floor_share=0.2), battery_share=share, charging=charging)
    assert said == (None if allowed else f"battery at {share:.0%}, the policy's floor is 20%")


@pytest.mark.parametrize(
    ("share", "charging", "allowed"),
    [(1.0, True, True), (1.0, False, False), (1.0, None, False), (None, False, False), (None, True, True)],
)
def test_charging_only_asks_for_proof(share: float | None, charging: bool | None, allowed: bool) -> None:
    said = decide(CHARGING_ONLY, battery_share=share, charging=charging)
    assert said == (None if allowed else "the policy allows training on a charger only")


def test_heat_above_the_ceiling_denies_with_both_values() -> None:
    assert decide(Policy(max_temperature_c=80), temperature_c=80.0) is None
    assert decide(Policy(max_temperature_c=80), temperature_c=91.0) == "91 °C, the policy's ceiling is 80 °C"


def test_disk_below_the_least_denies_with_both_values() -> None:
    policy = Policy(min_disk_free_bytes=256 * MIB)
    assert decide(policy, disk_free_bytes=256 * MIB) is None
    assert decide(policy, disk_free_bytes=10 * MIB) == "10 MiB free on disk, the policy asks for 256 MiB"


@pytest.mark.parametrize(("share", "allowed"), [(0.25, True), (0.26, False), (None, False)])
def test_idle_only_asks_for_proof_that_others_are(share: float | None, allowed: bool) -> None:
    assert (decide(Policy(idle_only=True), others_cpu_share=share) is None) == allowed
    assert decide(Policy(), others_cpu_share=1.0) is None


@pytest.mark.parametrize(("metered", "allowed"), [(False, True), (True, False), (None, False)])
def test_unmetered_only_asks_for_proof_and_ends_training_and_transfers(metered: bool | None, allowed: bool) -> None:
    for question in (may_train, may_transfer):
        assert (question(Policy(unmetered_only=True), moment(metered=metered)) is None) == allowed
        assert question(Policy(), moment(metered=metered)) is None


@pytest.mark.parametrize(
    ("window", "minutes"),
    [
        ("22:00-07:00", {21 * 60 + 59: False, 22 * 60: True, 0: True, 7 * 60 - 1: True, 7 * 60: False}),
        ("12:30-13:00", {12 * 60 + 29: False, 12 * 60 + 30: True, 13 * 60: False}),
        ("00:00-24:00", {0: True, 720: True, 1439: True}),
        ("23:00-00:00", {22 * 60 + 59: False, 23 * 60: True, 1439: True, 0: False}),
    ],
)
def test_quiet_hours_hold_from_their_start_until_before_their_stop(window: str, minutes: dict[int, bool]) -> None:
    policy = Policy(quiet_hours=("03:00-03:01", window))
    for minute, quiet in minutes.items():
        at = Moment(UNKNOWN, minute)
        assert (may_train(policy, at) is not None) == (may_transfer(policy, at) is not None) == quiet, minute


def test_quiet_hours_in_one_text_are_not_read_letter_by_letter() -> None:
    with pytest.raises(SettingError, match="quiet_hours '22:00-07:00' is one text: give a tuple of such"):
        Policy(quiet_hours="22:00-07:00")


def test_quiet_hours_name_the_time_and_the_window() -> None:
    denied = may_train(Policy(quiet_hours=("22:00-07:00",)), Moment(UNKNOWN, 65))
    assert reason(denied) == "it is 01:05, within the quiet hours 22:00-07:00"


def test_daily_energy_ends_training_and_asks_for_a_figure() -> None:
    policy = Policy(daily_energy_wh=5.0)
    assert reason(may_train(policy, NOON)) == (
        "the daily energy cannot be counted: give training_watts, or a profile with a battery's figures"
    )
    for used_wh, said in ((4.99, None), (5.0, "5.0 Wh used today, the policy allows 5 Wh")):
        assert reason(may_train(policy, Moment(UNKNOWN, 0, Spent(energy_wh=used_wh), watts=4.0))) == said


def test_daily_bytes_end_transfers_and_new_work_but_not_training() -> None:
    policy = Policy(daily_mib=10)
    assert may_begin(policy, Moment(UNKNOWN, 0, Spent(transferred_bytes=10 * MIB - 1))) is None
    used_up = Moment(UNKNOWN, 0, Spent(transferred_bytes=10 * MIB))
    assert reason(may_transfer(policy, used_up)) == "10.0 MiB moved today, the policy allows 10 MiB"
    assert may_begin(policy, used_up) == may_transfer(policy, used_up)
    assert may_train(policy, used_up) is None


def test_first_broken_rule_is_the_one_that_is_named() -> None:
    broken = moment(battery_share=0.1, charging=False, temperature_c=99.0, disk_free_bytes=0)
    assert may_train(CHARGING_ONLY, broken) == Denied("the policy allows training on a charger only")


# -- what people write


def read_policy(values: dict[str, str]) -> Policy:
    agent = {"device": "pi-5", "broker": "mqtt://127.0.0.1", "data": Path("texts.csv")}
    options = {f"policy.{name}": value for name, value in values.items()}
    return load_settings(None, {}, {**agent, **options}).config.policy


def test_policy_is_read_from_options() -> None:
    typed = {"battery_floor_share": "0.3", "quiet_hours": "22:00-07:00, 12:00-13:00"}
    assert read_policy(typed) == Policy(battery_floor_share=0.3, quiet_hours=("22:00-07:00", "12:00-13:00"))
    assert read_policy({}) == Policy()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"battery_floor_share": "much"}, r"battery_floor_share = 'much' is wrong: Expected `float`"),
        ({"battery_floor_share": "1.5"}, r"battery_floor_share 1\.5 must be from 0 to 1"),
        ({"battery_floor_share": "nan"}, r"battery_floor_share nan must be from 0 to 1"),
        ({"daily_mib": "-1"}, r"daily_mib -1\.0 must not be negative"),
        ({"daily_energy_wh": "-0.5"}, r"daily_energy_wh -0\.5 must not be negative"),
        ({"quiet_hours": "22-7"}, r"quiet_hours '22-7' are not of the form 22:00-07:00"),
        ({"quiet_hours": "25:00-07:00"}, r"'25:00-07:00' are not of the form"),
        ({"quiet_hours": "22:00-07:00,"}, r"quiet_hours '' are not of the form"),
        ({"quiet_hours": "07:00-07:00"}, r"'07:00-07:00' are empty"),
    ],
)
def test_value_that_cannot_be_is_refused_by_name_and_value(values: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        read_policy(values)


def test_policy_made_in_a_program_is_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="battery_floor_share 30 must be from 0 to 1"):
        Policy(battery_floor_share=30)
    with pytest.raises(ConfigurationError, match="are not of the form"):
        Policy(quiet_hours=("night",))


@pytest.mark.parametrize("text", ["22:00", "22:00-23:00-24:00", "2:00-3:00", "22:00:30-23", "24:01-01:00", "-"])
def test_odd_window_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        QuietHours.parse(text)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"daily_mib": "5"}, "daily_mib '5' is no number"),
        ({"battery_floor_share": None}, "battery_floor_share None is no number"),
        ({"max_temperature_c": None}, "max_temperature_c None is no number"),
        ({"min_disk_free_bytes": True}, "min_disk_free_bytes True is no number"),
        ({"charging_only": "false"}, "charging_only 'false' is neither True nor False"),
        ({"quiet_hours": None}, "quiet_hours None is no tuple"),
        ({"quiet_hours": (22,)}, r"quiet_hours \(22,\) is no tuple"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "says",
)
def test_value_of_another_type_is_one_clear_line(settings: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Policy(**settings)
    assert Policy(daily_mib=np.float32(5), daily_energy_wh=3).daily_mib == 5
