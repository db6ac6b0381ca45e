"""A release made, a model saved or a backup taken by one process while the coordinator, another, sweeps its folder."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from coordinator import backup
from coordinator.cli import app
from coordinator.config import CoordinatorConfig
from coordinator.delivery import creating
from coordinator.delivery.approving import known_release, manifest_of
from coordinator.delivery.creating import Wanted, create_release
from coordinator.delivery.keys import own_key
from coordinator.fleet.folder import say_of_fleet
from coordinator.resources import Resources
from coordinator.rounds.agenda import Agenda
from coordinator.rounds.closing import keep_version
from coordinator.rounds.tasks import save_version
from coordinator.store.database import Store
from coordinator.store.opening import move_store, open_store
from edge_sdk.errors import ConfigurationError, StateInUseError
from edge_sdk.protocol.releases import Precision
from edge_sdk.protocol.signing import Role
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.light_model import light_models, light_task
from tests.support.simulator import able_device

TASK = "news"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """With a task that has a version, and a device."""
    config = light_task(tmp_path, TASK)
    with light_models() as run:
        store = open_store(tmp_path)
        made, version = run.prepare(config, BlobFolder(tmp_path / "blobs"), tmp_path, threads=1, say=lambda _: None)
        with store.transaction() as tx:
            tx.tasks.add(TASK, msgspec.json.encode(config), 0.0)
            keep_version(tx, TASK, version, made.evaluate(version))
            tx.devices.hello("pi", "board", 1, 0.0)
            tx.devices.seen("pi", 0.0, able_device())
        yield store
        store.close()


@pytest.fixture
def agenda(tmp_path: Path, store: Store) -> Agenda:
    """Of the coordinator that serves the folder."""
    settings = CoordinatorConfig(state_dir=tmp_path, broker="")
    resources = Resources(
        settings=settings,
        store=store,
        blobs=BlobFolder(settings.blob_dir),
        key=Ed25519PrivateKey.generate(),
        send=lambda *_: None,
        fetch=lambda *_: None,
        cancel=lambda _: None,
        submit=lambda *_: None,
        sweep=lambda: None,
    )
    return Agenda(resources)


def test_what_is_made_for_a_release_is_not_swept_away_before_it_is_recorded(
    tmp_path: Path, store: Store, agenda: Agenda, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, swept = creating.build_exports, list[bool]()

    def build_and_sweep(*words: Any) -> Any:
        exports = build(*words)
        swept.append(agenda.sweep())
        return exports

    monkeypatch.setattr(creating, "build_exports", build_and_sweep)
    wanted = Wanted(TASK, None, (), (Precision.INT8,), 1.0, None, 1)
    number = create_release(store, tmp_path, wanted, time.time(), "a test", lambda _: None)
    assert swept == [False]
    with store.reading() as tx:
        entries = [entry for export in manifest_of(known_release(tx, number)).exports for entry in export.manifest]
    blobs = BlobFolder(tmp_path / "blobs")
    assert entries
    assert all(blobs.has(entry.digest) for entry in entries)
    stray = blobs.put_bytes(b"of nobody")
    assert agenda.sweep()
    assert not blobs.has(stray)
    assert all(blobs.has(entry.digest) for entry in entries)


def test_release_is_for_the_fleet_whose_folder_it_is(tmp_path: Path, store: Store) -> None:
    """It was for the fleet `default`: no device took it, and no word was said of it."""
    say_of_fleet(tmp_path, hosts=("localhost",), name="barn")

    def made_for(fleet: str | None) -> str:
        wanted = Wanted(TASK, None, (), (Precision.INT8,), 1.0, fleet, 1)
        number = create_release(store, tmp_path, wanted, time.time(), "a test", lambda _: None)
        with store.reading() as tx:
            return manifest_of(known_release(tx, number)).fleet

    assert (made_for(None), made_for("barn")) == ("barn", "barn")
    with pytest.raises(ConfigurationError, match="is the state folder of fleet 'barn', not 'default'"):
        made_for("default")


@pytest.mark.usefixtures("store")
def test_store_does_not_move_while_a_release_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release was recorded in the store that the fleet had left."""
    refused = list[str]()

    def made(*_: object) -> int:
        with pytest.raises(StateInUseError) as raised:
            move_store(tmp_path, f"sqlite:///{tmp_path}/other.sqlite")
        refused.append(str(raised.value))
        raise ConfigurationError("no release")

    monkeypatch.setattr(creating, "create_release", made)
    CliRunner().invoke(app, ["release", "create", TASK, "--state-dir", str(tmp_path)])
    assert len(refused) == 1


@pytest.mark.usefixtures("store")
def test_what_a_backup_records_is_not_swept_away_before_it_is_packed(
    tmp_path: Path, agenda: Agenda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where packing takes longer than a round, each try lost blobs to the next version, and no backup was taken."""
    copied, swept = backup._copied, list[bool]()

    def copied_and_swept(store: Store, copy: Path) -> set[str]:
        needed = copied(store, copy)
        with store.transaction() as tx:
            tx.versions._delete(task=TASK)
        swept.append(agenda.sweep())
        return needed

    monkeypatch.setattr(backup, "_copied", copied_and_swept)
    own_key(tmp_path, Role.ROUND)
    count = backup.back_up(tmp_path, tmp_path / "backup.tar")
    assert swept == [False]
    assert backup.restore(tmp_path / "backup.tar", tmp_path / "again") == count > 0
    assert agenda.sweep()
    assert BlobFolder(tmp_path / "blobs").digests() == ()


def test_version_is_not_swept_away_while_it_is_saved(
    tmp_path: Path, store: Store, agenda: Agenda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer version is kept in its place meanwhile, as a round makes one."""

    def saved(_: object, version: Any, folder: Path, *, is_stacked: bool) -> None:
        assert (version.number, is_stacked) == (0, False)
        folder.mkdir()

    def foundation_of(*_: object) -> None:
        with store.transaction() as tx:
            tx.versions._delete(task=TASK)
        assert not agenda.sweep()

    monkeypatch.setattr(importlib.import_module("coordinator.models.saving"), "save_model", saved)
    monkeypatch.setattr(importlib.import_module("coordinator.models.run"), "foundation_of", foundation_of)
    assert save_version(store, BlobFolder(tmp_path / "blobs"), TASK, tmp_path / "saved") == 0
    assert agenda.sweep()
