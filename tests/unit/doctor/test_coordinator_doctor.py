"""The coordinator's doctor: a well one is found well and left as it is, and each thing that is wrong is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from coordinator.config import TaskConfig
from coordinator.delivery.keys import own_key
from coordinator.doctor import records
from coordinator.doctor.examination import examine_coordinator, require_well
from coordinator.doctor.patient import Patient
from coordinator.fleet.revocation import revoke_device
from coordinator.rounds.tasks import queue_task
from coordinator.store.database import Store
from coordinator.store.migrations import move_to
from coordinator.store.opening import SQLITE_FILE, look_into, open_store, sole_user
from coordinator.store.records import VersionRecord
from coordinator.store.states import TaskStatus
from edge_sdk.diagnosis.findings import Finding, Mark, failed
from edge_sdk.errors import UnfitCoordinatorError
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.signing import Role
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.secured import new_fleet

NOW_S = time.time()
PHRASE = "hush-hush"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the newest schema with nothing in it: migrating one takes longer than examining it."""
    folder = tmp_path_factory.mktemp("empty")
    open_store(folder).close()
    return folder / SQLITE_FILE


@pytest.fixture
def state(tmp_path: Path, empty: Path) -> Path:
    """A coordinator's folder: a task with a version of three blobs, and two devices."""
    folder, model = tmp_path / "state", tmp_path / "model"
    for made in (folder, model):
        made.mkdir()
    shutil.copy(empty, folder)
    (model / "config.json").write_text('{"model_type": "bert"}')
    for name in ("calibration.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\ngood,yes\nbad,no\n")
    files = {"calibration_file": str(tmp_path / "calibration.csv"), "test_file": str(tmp_path / "test.csv")}
    with closing(open_store(folder)) as store:
        queue_task(store, TaskConfig(name="news", model_dir=str(model), **files, quorum=2), NOW_S, "a test")
        keep_version(store, folder, 3)
        with store.transaction() as tx:
            for device in ("pi-4", "pi-5"):
                tx.devices.hello(device, "board", 1, NOW_S)
    own_key(folder, Role.ROUND)
    return folder


def keep_version(store: Store, folder: Path, blobs: int) -> None:
    digests = [BlobFolder(folder / "blobs").put_bytes(f"{number}".encode() * 99) for number in range(blobs)]
    entries = tuple(BlobEntry(part=Part.WEIGHTS, digest=digest, size_bytes=99) for digest in digests)
    with store.transaction() as tx:
        tx.versions.add(VersionRecord("news", len(tx.versions.all("news")), "a" * 64, entries, NOW_S))


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What is in a folder, with its rights and when it was written."""
    found = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(path): (it.st_mode, it.st_mtime_ns, path.read_bytes()) for path, it in found.items()}


def found(state: Path, **settings: object) -> list[Finding]:
    return examine_coordinator(Patient(state, **settings))


def troubles(state: Path, **settings: object) -> list[Finding]:
    return [finding for finding in found(state, **settings) if finding.mark is not Mark.OK]


def test_well_coordinator_is_found_well_and_left_as_it_is(state: Path) -> None:
    before = everything(state)
    with sole_user(state):
        findings = found(state)
    assert {finding.mark for finding in findings} == {Mark.OK}, findings
    assert {finding.check: finding.found for finding in findings} | {
        "secrets": "only their owner can read round.key",
        "coordinator": "a coordinator serves the folder",
        "blobs": "all 3 exist; 3 were verified",
        "tasks": "1 pending",
        "devices": "2 known, 2 of them online",
    } == {finding.check: finding.found for finding in findings}
    require_well(findings)
    after = everything(state)
    assert after.pop(str(state / "serving.lock"))[2] == b""
    assert after == before


# -- one thing is wrong


def _of_store(change: Callable[[Store], object]) -> Callable[[Path], None]:
    def ill(state: Path) -> None:
        with closing(open_store(state)) as store:
            change(store)

    return ill


def _one_blob(state: Path) -> Path:
    return min((state / "blobs").iterdir())


def _flip(state: Path) -> None:
    blob = _one_blob(state)
    blob.write_bytes(b"X" + blob.read_bytes()[1:])


def _junk(state: Path) -> None:
    (state / "coordinator.sqlite").write_bytes(b"not a database" * 1000)


def _older(store: Store) -> None:
    with store._connection(read_only=False) as connection:
        move_to(connection, "1")


def _newer(store: Store) -> None:
    with store._connection(read_only=False) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '99'"))


def _silent(store: Store) -> None:
    with store.transaction() as tx:
        tx.devices.hello("barn", "board", 1, NOW_S - 12 * 86400)


def _never_started(store: Store) -> None:
    with store.transaction() as tx:
        tx.devices.enrol("barn", None, NOW_S - 12 * 86400)


def _lonely(store: Store) -> None:
    with store.transaction() as tx:
        tx.devices.offline("pi-4", 1)


def _fail(store: Store) -> None:
    with store.transaction() as tx:
        tx.tasks.set_status("news", TaskStatus.FAILED, "model/config.json is gone")


def _fail_long_ago(store: Store) -> None:
    with store.transaction() as tx:
        tx.tasks.set_status("news", TaskStatus.FAILED)


def _elsewhere(state: Path) -> None:
    (state / "store.url").write_text(f"postgresql://user:{PHRASE}@127.0.0.1:1/fleet\n")
    (state / "store.url").chmod(0o600)


@pytest.mark.parametrize(
    ("ill", "check", "mark", "words"),
    [
        (lambda it: it.chmod(0o777), "state folder", Mark.FAILURE, "others may write"),
        (
            lambda it: (it / "round.key").chmod(0o644),
            "secrets",
            Mark.FAILURE,
            "others may read round.key (mode 644)",
        ),
        (lambda it: (it / "round.key").write_text("x"), "keys", Mark.FAILURE, "is not a key"),
        (
            lambda it: (it / "round.pub").write_text("0" * 64),
            "keys",
            Mark.WARNING,
            "is not the public key of round.key",
        ),
        (lambda it: _one_blob(it).unlink(), "blobs", Mark.FAILURE, "missing: 1 of 3, "),
        (_flip, "blobs", Mark.FAILURE, "damaged: 1 of 3 that were verified"),
        (_junk, "store", Mark.FAILURE, "file is not a database"),
        (_elsewhere, "store", Mark.FAILURE, "does not answer"),
        (_of_store(_older), "store", Mark.WARNING, "schema 1 is older than this version's"),
        (_of_store(_newer), "store", Mark.FAILURE, "schema 99 is of a newer coordinator"),
        (lambda it: shutil.rmtree(it.parent / "model"), "tasks", Mark.FAILURE, "model/config.json does not exist"),
        (lambda it: (it.parent / "test.csv").unlink(), "tasks", Mark.FAILURE, "test.csv is missing"),
        (_of_store(_fail), "tasks", Mark.WARNING, "news failed: model/config.json is gone"),
        (
            _of_store(_fail_long_ago),
            "tasks",
            Mark.WARNING,
            "news failed: under an older version, which stored no reason",
        ),
        (_of_store(_silent), "devices", Mark.WARNING, "offline for a week or more: barn (12 days)"),
        (
            _of_store(_never_started),
            "devices",
            Mark.WARNING,
            "enrolled a week ago or more, never connected: barn (12 days)",
        ),
        (
            _of_store(_lonely),
            "devices",
            Mark.WARNING,
            "news needs 2 devices at once, and 1 of its target devices are online",
        ),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    state: Path, ill: Callable[[Path], None], check: str, mark: Mark, words: str
) -> None:
    ill(state)
    before = everything(state)
    with sole_user(state):
        (finding,) = troubles(state)
    assert (finding.check, finding.mark) == (check, mark), finding
    assert words in finding.found
    assert finding.advice
    assert PHRASE not in finding.found
    assert "\n" not in finding.found
    after = everything(state)
    assert {name: after[name] for name in before} == before


def test_task_that_waits_for_a_coordinator_is_said(state: Path) -> None:
    (finding,) = troubles(state)
    assert finding == Finding(
        "tasks", Mark.WARNING, "waiting, but no coordinator runs: news", "start `coordinator serve`"
    )


def test_folder_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    (finding,) = troubles(tmp_path / "nowhere")
    assert (finding.check, finding.mark) == ("state folder", Mark.FAILURE)
    assert not (tmp_path / "nowhere").exists()


def test_folder_before_its_first_task_is_well(tmp_path: Path) -> None:
    (finding,) = troubles(tmp_path)
    assert (finding.check, finding.mark, finding.found) == ("store", Mark.WARNING, "none yet")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("free", "mark"), [(1, Mark.FAILURE), (3, Mark.WARNING), (5, Mark.OK)])
def test_disk_is_held_against_what_the_next_round_takes(
    state: Path, monkeypatch: pytest.MonkeyPatch, free: int, mark: Mark
) -> None:
    """Before its first round: the next version, and two updates that are as large as the model may be."""
    needed = 3 * 99 * 2
    monkeypatch.setattr(records, "_MIN_FREE_BYTES", 0)
    monkeypatch.setattr(records.shutil, "disk_usage", lambda _: SimpleNamespace(free=free * needed // 2))
    (disk,) = (finding for finding in found(state) if finding.check == "disk")
    assert disk.mark is mark, disk


def test_every_blob_is_read_where_that_is_asked_for(state: Path) -> None:
    with closing(look_into(state)) as store:
        keep_version(store, state, records.SAMPLE + 10)
    (finding,) = (it for it in found(state) if it.check == "blobs")
    assert finding.found == f"all {records.SAMPLE + 10} exist; {records.SAMPLE} were verified"
    _flip(state)
    (finding,) = (it for it in found(state, all_blobs=True) if it.check == "blobs")
    assert f"damaged: 1 of {records.SAMPLE + 10} that were verified" in finding.found


def test_blob_that_a_coordinator_deletes_meanwhile_is_not_missed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It commits what replaces a version, and only then deletes the old one's blobs."""
    recorded, asked = records.recorded_blobs, list[int]()

    def replaced(tx: object) -> set[str]:
        asked.append(1)
        return recorded(tx) | ({"f" * 64} if len(asked) == 1 else set())  # type: ignore[arg-type]

    monkeypatch.setattr(records, "recorded_blobs", replaced)
    (finding,) = (it for it in found(state) if it.check == "blobs")
    assert finding.mark is Mark.OK


def test_package_that_is_missing_is_said(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.doctor.examination._PACKAGES", ("sqlalchemy", "no_such_package"))
    with sole_user(state):
        (finding,) = troubles(state)
    assert (finding.mark, finding.found) == (Mark.FAILURE, "not installed: no_such_package")


def test_failures_are_named_and_warnings_are_none() -> None:
    findings = [
        Finding("blobs", Mark.FAILURE, "x"),
        Finding("blobs", Mark.FAILURE, "y"),
        Finding("a", Mark.WARNING, "z"),
    ]
    assert failed(findings) == ["blobs"]
    with pytest.raises(UnfitCoordinatorError, match=r"something is wrong, see above: blobs$") as raised:
        require_well(findings)
    assert raised.value.exit_code == 9
    require_well(findings[2:])


# -- the command


def typed(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.cli", "doctor", *map(str, words)]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@pytest.mark.parametrize("broker", [pytest.param(None, marks=pytest.mark.long), "mqtt://127.0.0.1:9"])
def test_command_ends_with_nine_in_one_line_where_something_is_wrong(state: Path, broker: str | None) -> None:
    secret = state.parent / "password"
    secret.write_text(PHRASE)
    words = () if broker is None else ("--broker", broker, "--user", "ops", "--password-file", secret)
    done = typed("--state-dir", state, "--json", *words)
    told = json.loads(done.stdout)
    assert told["can_run"] is (broker is None)
    assert done.returncode == (0 if broker is None else 9), done.stderr
    assert done.stderr == ("" if broker is None else "coordinator: something is wrong, see above: broker\n")
    assert PHRASE not in done.stdout + done.stderr
    assert {finding["check"] for finding in told["findings"]} >= {"store", "blobs", "tasks", "devices"}


def test_revoked_device_is_nothing_to_see_to(state: Path) -> None:
    _of_store(_silent)(state)
    _of_store(lambda store: revoke_device(store, "barn", NOW_S, "a test"))(state)
    with sole_user(state):
        assert troubles(state) == []


def test_fleet_s_own_certificate_is_renewed_by_its_own_command(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Finding(
        "certificate", Mark.WARNING, "the broker's certificate is valid until tomorrow, 1 days", "renew it before"
    )
    monkeypatch.setattr("edge_sdk.diagnosis.reaching.reach", lambda *_, **__: iter([ending]))
    with sole_user(state):
        assert troubles(state, broker="mqtts://127.0.0.1") == [ending]
        new_fleet(state)
        (finding,) = troubles(state)
    assert finding.advice.startswith("`coordinator broker config mosquitto` makes a new one")
