"""Profiles: every one reads, every figure has a source, and what is wrong is said by name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_sdk.device.profile import DeviceProfile, load_profile, profile_names
from edge_sdk.errors import ConfigurationError, UnknownProfileError

EXPECTED = {
    "android-mid-range",
    "industrial-gateway",
    "jetson-orin-nano-8gb",
    "raspberry-pi-4-2gb",
    "raspberry-pi-4-4gb",
    "raspberry-pi-5-8gb",
    "raspberry-pi-zero-2-w",
}
MINIMAL = """
name = "board"
title = "A board"
kind = "board"
cpu = "two cores"
cores = 2
memory_total_mib = 1024
sources = []

[limits]
training_memory_mib = 200
inference_memory_mib = 100
threads = 2
"""
BATTERY = "\n[battery]\ncapacity_wh = 10\nidle_watts = 1\ntraining_watts = 2\n"


def figures_without_source(profile: DeviceProfile) -> list[str]:
    covered = {field for source in profile.sources for field in source.fields}
    tree = msgspec.to_builtins(profile)
    top = [name for name, value in tree.items() if isinstance(value, (int, float))]
    nested = [f"{table}.{name}" for table in ("limits", "battery") for name in tree[table] or ()]
    return [figure for figure in top + nested if covered.isdisjoint({figure, figure.partition(".")[0]})]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "board.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_names_are_the_files_that_are_installed() -> None:
    assert set(profile_names()) == EXPECTED


@pytest.mark.parametrize("name", profile_names())
def test_profile_has_the_name_of_its_file(name: str) -> None:
    assert load_profile(name).name == name


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_has_a_source(name: str) -> None:
    assert figures_without_source(load_profile(name)) == []


def test_figure_without_a_source_is_found(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINIMAL + BATTERY))
    covered = msgspec.structs.replace(profile, sources=load_profile("raspberry-pi-zero-2-w").sources)
    assert figures_without_source(covered) == ["battery.capacity_wh", "battery.idle_watts", "battery.training_watts"]
    assert "limits.threads" in figures_without_source(profile)


@pytest.mark.parametrize("name", profile_names())
def test_limits_leave_the_device_its_own_job(name: str) -> None:
    profile = load_profile(name)
    share = 1 / 3 if profile.memory_total_mib < 2048 else 1 / 10
    assert profile.limits.training_memory_mib <= share * profile.memory_total_mib
    assert profile.limits.inference_memory_mib <= share * profile.memory_total_mib
    assert profile.limits.threads <= profile.cores


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UnknownProfileError, match="did you mean raspberry-pi-5-8gb"):
        load_profile("raspberry-pi5-8gb")


def test_name_like_no_other_lists_what_is_known() -> None:
    with pytest.raises(UnknownProfileError, match=r"known are android-mid-range, .*raspberry-pi-zero-2-w"):
        load_profile("???")


def test_missing_file_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnknownProfileError, match="does not exist"):
        load_profile(str(tmp_path / "nowhere.toml"))


def test_profile_is_read_from_a_path(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINIMAL))
    assert (profile.name, profile.limits.threads, profile.battery) == ("board", 2, None)


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("cores = 2\n", "", "cores"),
        ("threads = 2", 'threads = "two"', r"\$\.limits\.threads"),
        ("threads = 2", "threads = 0", r"\$\.limits\.threads"),
        ("training_memory_mib = 200", "training_memory_mib = -1", r"\$\.limits\.training_memory_mib"),
        ("cores = 2", "cores = 2\ncoers = 2", "coers"),
        ('name = "board"', 'name = "A Board"', r"\$\.name"),
        ("cores = 2", "cores = ", "line 6"),
        ("capacity_wh = 10", "capacity_wh = 0", r"\$\.battery\.capacity_wh"),
    ],
)
def test_malformed_file_is_refused_by_field(tmp_path: Path, right: str, wrong: str, named: str) -> None:
    text = MINIMAL + BATTERY
    assert right in text
    with pytest.raises(ConfigurationError, match=f"board.toml cannot be read: .*{named}"):
        load_profile(write(tmp_path, text.replace(right, wrong, 1)))


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_profile(str(path))
