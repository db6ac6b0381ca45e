"""Residuals by task and round."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_sdk.storage.residuals import KEEP_S, Residuals


@pytest.fixture
def residuals(tmp_path: Path) -> Residuals:
    return Residuals(tmp_path / "residuals")


def keep(residuals: Residuals, folder: Path, task: str, number: int) -> None:
    made = folder / "made"
    made.write_text(f"{task} {number}")
    residuals.keep(task, number, made)


def test_newest_of_the_rounds_before_is_found(residuals: Residuals, tmp_path: Path) -> None:
    assert residuals.before("news", 5) is None
    for number in (1, 3):
        keep(residuals, tmp_path, "news", number)
    found = [residuals.before("news", number) for number in (1, 2, 3, 4, 9)]
    assert [path and path.read_text() for path in found] == [None, "news 1", "news 1", "news 3", "news 3"]


def test_round_that_is_trained_again_starts_from_the_same_one(residuals: Residuals, tmp_path: Path) -> None:
    for number in (1, 2, 2):
        keep(residuals, tmp_path, "news", number)
        assert (before := residuals.before("news", 2)) is not None
        assert before.read_text() == "news 1"


def test_two_are_left_of_a_task_and_those_of_others(residuals: Residuals, tmp_path: Path) -> None:
    for task, number in (("news", 1), ("news-2", 7), ("news", 2), ("news", 4), ("news", 5)):
        keep(residuals, tmp_path, task, number)
    assert sorted(path.name for path in (tmp_path / "residuals").iterdir()) == [
        "news-2.7.safetensors",
        "news.4.safetensors",
        "news.5.safetensors",
    ]


def test_later_ones_of_an_earlier_task_of_the_same_name_go(residuals: Residuals, tmp_path: Path) -> None:
    for number in (8, 9, 1):
        keep(residuals, tmp_path, "news", number)
    assert residuals.before("news", 100) == tmp_path / "residuals" / "news.1.safetensors"


def test_what_another_task_left_goes_after_a_week(residuals: Residuals, tmp_path: Path) -> None:
    keep(residuals, tmp_path, "old", 1)
    left = residuals.before("old", 2)
    assert left is not None
    os.utime(left, (left.stat().st_mtime - KEEP_S - 60,) * 2)
    keep(residuals, tmp_path, "news", 1)
    assert residuals.before("old", 2) is None
