"""A coordinator's own key outlives whatever ends the process that makes it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from coordinator.delivery.keys import held_keys, new_key, own_key, read_key, read_public
from edge_sdk.errors import ConfigurationError, DiskFullError
from edge_sdk.protocol.signing import Role


def public(folder: Path) -> str:
    return own_key(folder, Role.RELEASE).public_key().public_bytes_raw().hex()


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
            own_key(tmp_path, Role.RELEASE)
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
    with pytest.raises(ConfigurationError, match="is not a key"):
        own_key(tmp_path, Role.RELEASE)


def test_full_disk_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFullError):
        own_key(tmp_path, Role.RELEASE)
    assert not any(tmp_path.iterdir())


def test_key_of_a_person_is_made_once_and_may_have_a_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "ann.key"
    public = new_key(path, "sesame")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    assert read_key(path, "sesame").public_key().public_bytes_raw().hex() == public
    assert read_public(tmp_path / "ann.pub").hex() == public
    for wrong in (None, "open"):
        with pytest.raises(ConfigurationError, match="passphrase"):
            read_key(path, wrong)
    with pytest.raises(ConfigurationError, match="exists already"):
        new_key(path)


def test_key_of_a_person_takes_no_other_s_place(tmp_path: Path) -> None:
    new_key(tmp_path / "ann.root")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError, match=r"ann\.pub exists already"):
        new_key(tmp_path / "ann.release")
    with pytest.raises(ConfigurationError, match=r"bob\.pub has the name of a public key"):
        new_key(tmp_path / "bob.pub")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_coordinator_holds_the_keys_that_it_has_and_makes_none(tmp_path: Path) -> None:
    assert held_keys(tmp_path, Role.RELEASE) == ()
    made = own_key(tmp_path, Role.RELEASE).public_key()
    assert [key.public_key() for key in held_keys(tmp_path, Role.RELEASE)] == [made]


@pytest.mark.parametrize(("content", "reason"), [("xyz", "not hexadecimal"), ("ab" * 31, "31 bytes"), ("", "0 bytes")])
def test_public_key_that_is_none_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "ann.pub"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=reason):
        read_public(path)
