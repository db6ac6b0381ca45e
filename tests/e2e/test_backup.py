"""A coordinator is backed up in the middle of a round, lost, and restored elsewhere: the round ends there."""

from __future__ import annotations

import io
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.backup import back_up, restore
from coordinator.delivery.roots import ensure_root
from coordinator.fleet.folder import known_fleet
from coordinator.store.opening import open_store
from coordinator.store.states import Outcome, Phase, TaskStatus
from edge_sdk.errors import ConfigurationError, DataFormatError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.security import attacks
from tests.support.light_model import light_models, light_task
from tests.support.secured import new_fleet
from tests.support.served import Served, quick
from tests.support.simulator import Answer, Fleet, small_update

DEVICES = ("a", "b", "c")


@pytest.fixture
def light() -> Iterator[None]:
    with light_models():
        yield


class Case:
    """A task of two rounds of three devices; two of them answer before ``everyone`` may."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.hub, self.everyone = folder, MemoryHub(), False

    def serve(self, state: Path) -> Served:
        state.mkdir(exist_ok=True)
        task = light_task(self.folder, rounds=2, release=True, round_deadline_s=3600.0)
        return Served(quick(state), task, MemoryTransport(self.hub, coordinator_filters("default")))

    def fleet(self) -> Fleet:
        return Fleet(DEVICES, lambda _, filters, will: MemoryTransport(self.hub, filters, will=will), work=self.work)

    def work(self, device: str, offer: Offer, weights: bytes) -> Answer:
        return small_update(device, offer, weights) if device != "c" or self.everyone else None


def latest(served: Served) -> str:
    return served.read(lambda tx: tx.versions.latest("task")).digest


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "case")


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of ``state`` beside it, taken while the first round has two updates of three."""
    folder = tmp_path_factory.mktemp("backup")
    case = Case(folder / "case")
    with light_models(), case.serve(folder / "state") as served, case.fleet():
        served.wait_until(lambda: len(served.accepted) == 2)
        assert back_up(folder / "state", folder / "backup.tar") >= 4
    return folder / "backup.tar"


@pytest.fixture
def backup(taken: Path, tmp_path: Path) -> Path:
    """A copy, which a test may damage."""
    return Path(shutil.copy2(taken, tmp_path / "backup.tar"))


@pytest.mark.usefixtures("light")
def test_restored_coordinator_ends_the_round_with_the_updates_that_it_had(
    case: Case, backup: Path, tmp_path: Path
) -> None:
    assert backup.stat().st_mode & 0o077 == 0
    restore(backup, tmp_path / "elsewhere")
    case.everyone = True
    with case.serve(tmp_path / "elsewhere") as served:
        before = {update.update_id for update in served.accepted}
        assert len(before) == 2
        with case.fleet():
            served.wait_for_end()
    whole = Case(tmp_path / "whole")
    whole.everyone = True
    with whole.serve(tmp_path / "uninterrupted") as other, whole.fleet():
        other.wait_for_end()
    with case.serve(tmp_path / "elsewhere") as served, whole.serve(tmp_path / "uninterrupted") as other:
        assert [known.phase for known in served.decided] == [Phase.CLOSED] * 2
        assert before < {update.update_id for update in served.accepted}
        assert served.status is TaskStatus.DONE
        assert latest(served) == latest(other), "the same bytes as without a loss"
        offers = served.read(lambda tx: tx.offers.of_round("task", 1))
        assert {offer.outcome for offer in offers} == {Outcome.UPDATED}
        releases = served.read(lambda tx: tx.assignments.of_task("task"))
        assert min(release.number for release in releases) > 1_000_000, "devices may have had others meanwhile"


def test_backup_is_restored_only_into_a_new_folder(taken: Path, backup: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has a store: restore into another one"):
        restore(backup, taken.parent / "state")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "release.key").write_text("ab" * 32)
    with pytest.raises(ConfigurationError, match="is not the backup's key"):
        restore(backup, tmp_path / "other")
    assert restore(backup, tmp_path / "new") >= 4


def test_what_a_removed_store_left_beside_it_is_not_added_to_the_restored_one(backup: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    restore(backup, folder)
    with closing(open_store(folder)) as store:
        with store.transaction() as tx:
            tx.devices.hello("since", "board", 1, 1.0)
        for name in ("-wal", "-shm"):  # as a coordinator that was killed leaves them
            shutil.copy2(folder / f"coordinator.sqlite{name}", tmp_path / name)
    (folder / "coordinator.sqlite").unlink()
    for name in ("-wal", "-shm"):
        shutil.copy2(tmp_path / name, folder / f"coordinator.sqlite{name}")
    restore(backup, folder)
    with closing(open_store(folder)) as store, store.reading() as tx:
        assert tx.devices.get("since") is None
        assert {device.id for device in tx.devices.all()} == {*DEVICES}


def test_key_behind_a_link_is_in_the_backup(tmp_path: Path) -> None:
    state, vault = tmp_path / "state", tmp_path / "vault.key"
    with closing(open_store(state)) as store:
        ensure_root(store, state, 1.0)
    (state / "round.key").rename(vault)
    (state / "round.key").symlink_to(vault)
    back_up(state, tmp_path / "backup.tar")
    restore(tmp_path / "backup.tar", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "round.key").read_bytes() == vault.read_bytes()


def test_authority_is_in_the_backup_of_a_fleet_that_has_one(tmp_path: Path) -> None:
    fleet = new_fleet(tmp_path / "state")
    with closing(open_store(tmp_path / "state")) as store:
        ensure_root(store, tmp_path / "state", 1.0)
    back_up(tmp_path / "state", tmp_path / "backup.tar")
    restore(tmp_path / "backup.tar", tmp_path / "elsewhere")
    known = known_fleet(tmp_path / "elsewhere")
    assert known.authority.key_pem == fleet.authority.key_pem
    assert known.settings == fleet.settings
    assert (tmp_path / "elsewhere" / "ca").stat().st_mode & 0o077 == 0
    assert known.coordinator_file.stat().st_mode & 0o077 == 0


def test_nothing_is_backed_up_where_nothing_is_or_over_another_file(taken: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is nothing to back up"):
        back_up(tmp_path / "nowhere", tmp_path / "x.tar")
    with pytest.raises(ConfigurationError, match="exists already: choose another file"):
        back_up(taken.parent / "state", taken)


def repacked(backup: Path, change: Callable[[str, bytes], bytes | None], more: dict[str, bytes] | None = None) -> None:
    """With other contents; ``None`` leaves a member out."""
    with tarfile.open(backup) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    with tarfile.open(backup, "w") as archive:
        for name, content in (members | (more or {})).items():
            changed = change(name, content)
            if changed is not None:
                member = tarfile.TarInfo(name)
                member.size = len(changed)
                archive.addfile(member, io.BytesIO(changed))


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (
            lambda name, content: content[:-1] + b"?" if "/" in name else content,
            {},
            "damaged: blob .* does not match its digest",
        ),
        (lambda name, content: None if "/" in name else content, {}, "damaged: .* blobs that its store records"),
        (lambda name, content: None if "sqlite" in name else content, {}, "has no store"),
        (lambda name, content: None if name == "round.key" else content, {}, "has no key for rounds"),
        (lambda _, content: content, {"../escape": b"x"}, r"it has '\.\./escape'"),
        (lambda _, content: content, {"blobs/../../escape": b"x"}, "it has 'blobs/../../escape'"),
    ],
)
def test_file_that_is_no_whole_backup_is_refused_and_leaves_the_folder_new(
    backup: Path, tmp_path: Path, change: Callable[[str, bytes], bytes | None], more: dict[str, bytes], words: str
) -> None:
    whole = backup.read_bytes()
    repacked(backup, change, more)
    with pytest.raises(DataFormatError, match=words):
        restore(backup, tmp_path / "new")
    assert not (tmp_path / "escape").exists()
    backup.write_bytes(whole)
    assert restore(backup, tmp_path / "new") >= 4


def test_store_with_nothing_where_it_has_to_have_something_is_refused(backup: Path, tmp_path: Path) -> None:
    """Found by fuzzing: flipped bits can say so in spite of the schema."""

    def without_task(content: bytes) -> bytes:
        path = tmp_path / "damaged.sqlite"
        path.write_bytes(content)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA writable_schema=ON")
            connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'tasks'")
            connection.commit()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE tasks SET config = NULL")
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.commit()
        return path.read_bytes()

    repacked(backup, lambda name, content: without_task(content) if "sqlite" in name else content)
    with pytest.raises(DataFormatError, match="is damaged: its store cannot be read"):
        restore(backup, tmp_path / "new")


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_file_that_is_cut_short_is_refused(backup: Path, tmp_path: Path, length: int) -> None:
    backup.write_bytes(backup.read_bytes()[:length])
    with pytest.raises(DataFormatError, match="not a backup of a coordinator, or is truncated"):
        restore(backup, tmp_path / "new")


ATTACKS = (*attacks.TAR_FILES, *attacks.tar_bombs())


@pytest.mark.parametrize("number", range(len(ATTACKS)))
def test_archive_that_is_an_attack_is_refused_and_fills_no_disk(tmp_path: Path, number: int) -> None:
    (tmp_path / "in" / "it").mkdir(parents=True)
    (tmp_path / "backup.tar").write_bytes(ATTACKS[number])
    with pytest.raises(DataFormatError, match=r"not a backup of a coordinator|does not match its digest") as refused:
        restore(tmp_path / "backup.tar", tmp_path / "in" / "it" / "new")
    assert "\n" not in str(refused.value)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "backup.tar"]
    assert {path.name for path in left} <= {"serving.lock", digest_of(b"x")}
    assert sum(path.stat().st_size for path in left) < 1000


def test_key_is_nobody_elses_to_read_at_any_time(backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    replace = Path.replace

    def noting(self: Path, target: Path) -> Path:
        if target.suffix == ".key":
            seen.append(self.stat().st_mode & 0o077)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noting)
    restore(backup, tmp_path / "new")
    assert seen == [0, 0, 0]
