"""Profiles are found by name or path, and what is wrong in one is said by field."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.errors import ConfigurationError, UnknownProfileError
from edge_sdk.profile import load_profile, profile_names

MINIMAL = """
name = "board"
title = "A board"
kind = "board"
cpu = "two cores"
cores = 2
memory_total_mib = 1024
sources = [{ fields = ["limits"], document = "A page", url = "https://example.org/page", read = "2026-11-21" }]

[limits]
training_memory_mib = 200
inference_memory_mib = 100
threads = 2
"""
BATTERY = "\n[battery]\ncapacity_wh = 10\nidle_watts = 1\ntraining_watts = 2\n"


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "board.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_names_count_the_way_people_do() -> None:
    pis = [name for name in profile_names() if name.startswith("raspberry-pi-5-")]
    assert pis == ["raspberry-pi-5-4gb", "raspberry-pi-5-8gb", "raspberry-pi-5-16gb"]


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UnknownProfileError, match="did you mean raspberry-pi-5-8gb"):
        load_profile("raspberry-pi5-8gb")


def test_name_like_no_other_is_told_how_to_list_them() -> None:
    with pytest.raises(UnknownProfileError, match="edge-agent profile --list"):
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
        ('kind = "board"', 'kind = "bord"', r"\$\.kind"),
        ("cores = 2", 'cores = 2\narchitecture = "arm"', r"\$\.architecture"),
        ("https://example.org/page", "example.org", r"\$\.sources\[0\]\.url"),
        ("2026-11-21", "21.11.2026", r"\$\.sources\[0\]\.read"),
        ("cores = 2", "cores = ", "line 6"),
        ("capacity_wh = 10", "capacity_wh = 0", r"\$\.battery\.capacity_wh"),
    ],
)
def test_malformed_file_is_refused_by_field(tmp_path: Path, right: str, wrong: str, named: str) -> None:
    text = MINIMAL + BATTERY
    assert right in text
    with pytest.raises(ConfigurationError, match=rf"board.toml (cannot be read|is not TOML): .*{named}"):
        load_profile(write(tmp_path, text.replace(right, wrong, 1)))


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        load_profile(str(path))
