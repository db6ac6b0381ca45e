"""How figures are written on pages."""

from __future__ import annotations

from coordinator.dashboard.rendering import UNKNOWN, duration, exactly, mib, millions, percent, share, since, size


def test_bytes_have_the_unit_that_leaves_few_digits() -> None:
    shown = [size(count) for count in (0, 999, 1000, 102_400, 21 * 2**20, 2**40)]
    assert shown == ["0 B", "999 B", "1.0 KiB", "100 KiB", "21.0 MiB", "1.0 TiB"]
    assert (mib(3790 * 2**20), mib(None)) == ("3,790", UNKNOWN)


def test_times_have_their_largest_whole_unit() -> None:
    shown = [duration(seconds) for seconds in (-5, 0, 59, 60, 3599, 7200, 90_000)]
    assert shown == ["0 s", "0 s", "59 s", "1 min", "59 min", "2 h", "1 d"]
    assert (since(100.0, 100.5), since(100.0, 175.0), since(200.0, 100.0)) == ("now", "1 min ago", "now")


def test_what_somebody_has_set_is_shown_as_it_was_set() -> None:
    shown = [exactly(seconds) for seconds in (0, 0.5, 59, 60, 90, 3600, 5400, 86400, 129_600, 1e9)]
    assert shown == ["0 s", "0.5 s", "59 s", "1 min", "90 s", "1 h", "90 min", "1 d", "36 h", "1000000000 s"]
    assert [share(part) for part in (0.005, 0.29, 0.999, 1.0)] == ["0.5 %", "29 %", "99.9 %", "100 %"]


def test_shares_and_counts_are_rounded() -> None:
    assert (percent(0.9553, 1), percent(0.0), percent(None)) == ("95.5 %", "0 %", UNKNOWN)
    assert (millions(22_700_000), millions(12_345)) == ("22.7 M", "12.3 k")
