"""The release key outlives whatever ends the process that makes it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from coordinator.delivery.keys import release_key
from edge_sdk.errors import ConfigurationError, DiskFullError


def public(folder: Path) -> str:
    return release_key(folder).public_key().public_bytes_raw().hex()


def test_release_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    made = public(tmp_path)
    assert public(tmp_path) == made
    assert (tmp_path / "release.pub").read_text() == f"{made}\n"
    assert stat.S_IMODE((tmp_path / "release.key").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"release.key", "release.pub"}


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_process_that_ends_while_it_makes_the_key_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, step, end)
        with pytest.raises(KeyboardInterrupt):
            release_key(tmp_path)
    assert not (tmp_path / "release.key").exists()
    assert public(tmp_path) == public(tmp_path)


def test_key_that_another_process_has_made_meanwhile_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = public(tmp_path)
    with monkeypatch.context() as patch:
        answers = iter([False])
        patch.setattr(Path, "exists", lambda _: next(answers))
        assert public(tmp_path) == made


def test_damaged_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "release.key").write_text("abc")
    with pytest.raises(ConfigurationError, match="restore it"):
        release_key(tmp_path)


def test_full_disk_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFullError):
        release_key(tmp_path)
    assert not any(tmp_path.iterdir())
