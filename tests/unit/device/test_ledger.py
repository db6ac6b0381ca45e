"""The day's budgets: renewed at midnight, kept over restarts, and neither doubled nor lost by a clock that jumps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.device.ledger import Clocks, Ledger, seconds_to_renewal
from edge_sdk.device.policy import Spent
from edge_sdk.storage.outbox import Outbox

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
MIDNIGHT_S = 1_795_392_000.0  # 2026-11-23 00:00 UTC
SOME = Spent(energy_wh=2.5, transferred_bytes=1000)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Device:
    """A ledger, two clocks that a test turns by hand, and what a restart would find."""

    def __init__(self, hour: float) -> None:
        self.wall_s, self.steady_s = MIDNIGHT_S + hour * HOUR_S, 50.0
        self.ledger = Ledger(self.clocks)
        self.spend()

    @property
    def clocks(self) -> Clocks:
        return Clocks(self.wall_s, self.steady_s)

    def spend(self) -> None:
        self.ledger.spend(energy_wh=SOME.energy_wh, transferred_bytes=SOME.transferred_bytes)

    def run(self, hours: float) -> Spent:
        for _ in range(60):
            self.wall_s += hours * HOUR_S / 60
            self.steady_s += hours * HOUR_S / 60
            self.ledger.pass_time(self.clocks)
        return self.ledger.spent

    def jump(self, hours: float) -> Spent:
        self.wall_s += hours * HOUR_S
        self.ledger.pass_time(self.clocks)
        return self.ledger.spent

    def restart(self, *, off_hours: float = 0.0, clock_hours: float | None = None) -> Spent:
        """Off for a while; the wall clock then shows ``clock_hours`` more, where it did not run on."""
        kept = self.ledger.numbers()
        self.wall_s += (off_hours if clock_hours is None else clock_hours) * HOUR_S
        self.steady_s = 3.0
        self.ledger = Ledger(self.clocks, kept.get)
        return self.ledger.spent


def test_budgets_are_renewed_at_local_midnight() -> None:
    device = Device(hour=9)
    assert device.run(14.9) == SOME
    assert device.run(0.2) == Spent()
    device.spend()
    assert device.run(23.8) == SOME
    assert device.run(0.2) == Spent()


def test_day_that_begins_in_the_evening_lasts_through_the_next() -> None:
    device = Device(hour=20)
    assert device.run(27.9) == SOME
    assert device.run(0.2) == Spent()


@pytest.mark.parametrize("hours", [25.0, 24 * 365.0, -25.0, -24 * 365.0 * 10])
def test_clock_that_jumps_while_the_agent_runs_changes_nothing(hours: float) -> None:
    device = Device(hour=9)
    device.run(1)
    assert device.jump(hours) == SOME
    assert device.run(13.9) == SOME
    assert device.run(0.2) == Spent()


def test_restart_keeps_what_was_spent_and_lets_the_time_pass() -> None:
    device = Device(hour=9)
    device.run(1)
    assert device.restart(off_hours=5) == SOME
    assert device.run(8.9) == SOME
    assert device.restart(off_hours=1) == Spent()


def test_clock_set_back_over_a_restart_neither_renews_nor_locks() -> None:
    device = Device(hour=9)
    assert device.restart(clock_hours=-24 * 365 * 10) == SOME
    assert device.run(14.9) == SOME
    assert device.run(0.2) == Spent()


def test_clock_that_was_years_fast_does_not_lock() -> None:
    device = Device(hour=9)
    assert device.restart(clock_hours=24 * 365 * 10) == Spent()
    device.spend()
    assert device.restart(clock_hours=-24 * 365 * 10) == SOME
    assert device.run(37) == Spent()


def test_board_without_a_clock_learns_the_time_soon_after_its_start() -> None:
    device = Device(hour=9)
    assert device.restart(off_hours=20, clock_hours=0) == SOME
    device.run(0.05)
    assert device.jump(20) == Spent()
    device.spend()
    assert device.jump(48) == SOME


def test_clock_that_jumps_long_after_a_start_is_not_believed() -> None:
    device = Device(hour=9)
    device.restart(clock_hours=0)
    device.run(0.2)
    assert device.jump(48) == SOME


@given(hours=st.lists(st.tuples(st.floats(-1e5, 1e5), st.floats(0, 10)), max_size=30), start=st.floats(0, 24))
def test_two_renewals_are_12_to_37_hours_of_running_apart(hours: list[tuple[float, float]], start: float) -> None:
    """Whatever the wall clock does between them."""
    device = Device(start)
    renewed_s: list[float] = []
    for jump, run in hours:
        device.jump(jump)
        for _ in range(10):
            if device.run(run / 10) == Spent():
                renewed_s.append(device.steady_s)
                device.spend()
    gaps = [later - earlier for earlier, later in itertools.pairwise(renewed_s)]
    step_s = HOUR_S + 60
    assert all(12 * HOUR_S - step_s <= gap <= 37 * HOUR_S + step_s for gap in gaps), gaps


def test_numbers_survive_in_the_outbox(tmp_path: Path) -> None:
    device = Device(hour=9)
    outbox = Outbox(tmp_path / "outbox.sqlite", first_pause_s=1, max_pause_s=1)
    outbox.set_numbers(device.ledger.numbers())
    outbox.close()
    again = Outbox(tmp_path / "outbox.sqlite", first_pause_s=1, max_pause_s=1)
    assert Ledger(device.clocks, again.number).spent == SOME
    again.close()


def test_midnight_is_the_local_one_also_when_the_hour_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    before = time.mktime((2026, 10, 25, 0, 0, 0, 0, 0, -1))
    assert seconds_to_renewal(before) == 25 * HOUR_S
    assert seconds_to_renewal(before + 14 * HOUR_S) == 35 * HOUR_S
    assert seconds_to_renewal(before - 8 * HOUR_S) == 33 * HOUR_S


def test_clocks_read_this_machine() -> None:
    first = Clocks.now()
    second = Clocks.now()
    assert second.steady_s >= first.steady_s
    assert abs(first.wall_s - time.time()) < 5
    assert 0 <= first.minute < 1440


def test_time_zone_that_is_set_while_the_agent_runs_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Clocks(MIDNIGHT_S + 11 * HOUR_S, 50.0)
    assert (late.minute, seconds_to_renewal(late.wall_s)) == (11 * 60, 13 * HOUR_S)
    monkeypatch.setenv("TZ", "EAST-5")
    assert (late.minute, seconds_to_renewal(late.wall_s)) == (16 * 60, 32 * HOUR_S)
