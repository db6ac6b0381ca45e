"""What the API has done by a process of its own: archives, releases, the doctor; and that nothing of it stays."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from coordinator.api.access import make_token
from coordinator.api.jobs import BackUp, Examine, SaveModel
from coordinator.api.workshop import Workshop, sent
from coordinator.backup import restore
from coordinator.config import TaskConfig
from coordinator.delivery.roots import ensure_root, next_root, root_in, write_root
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.records import VersionRecord
from coordinator.store.states import AccessRole
from edge_sdk.data import TextExamples, write_examples
from edge_sdk.errors import RaffmError
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.light_model import light_task
from tests.support.secured import new_fleet
from tests.support.simulator import able_device


def header(store: Store, role: AccessRole) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(store, role.value, role, None, time.time(), 'a test')}"}


def left_over(folder: Path) -> list[Path]:
    return [*folder.glob(".work-*")]


def trained(store: Store, folder: Path) -> TaskConfig:
    """A task of a tiny BERT that has its version 0."""
    from coordinator.models.permutation import LayerOrder
    from coordinator.models.run import foundation_of
    from coordinator.models.versions import Ordering, save_version
    from tests.support.tiny_models import WORDS, save_tiny_model

    examples = TextExamples(tuple(WORDS[:4]), ("positive", "negative") * 2)
    file = str(write_examples(folder / "words.jsonl", examples))
    tiny = str(save_tiny_model(folder / "tiny", "bert"))
    task = light_task(folder, "news", model_dir=tiny, calibration_file=file, test_file=file)
    foundation = foundation_of(task, examples, examples)
    sizes = foundation.architecture
    orders = [LayerOrder(np.arange(sizes.heads), np.arange(sizes.ffn)) for _ in range(sizes.layers)]
    ordering = Ordering.of(orders, tuple(range(sizes.layers)))
    blobs = BlobFolder(folder / "blobs")
    made = save_version(blobs, 0, foundation.parameters, ordering, foundation.family, task.part)
    with store.transaction() as tx:
        tx.tasks.add("news", msgspec.json.encode(task), 1.0)
        tx.versions.add(VersionRecord("news", 0, made.digest, made.blobs, 1.0))
    return task


# -- archives


def test_version_comes_as_an_archive_of_a_hugging_face_folder(client: TestClient, store: Store, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    trained(store, tmp_path)
    mine = header(store, AccessRole.OPERATOR)
    answer = client.get("/api/v1/tasks/news/model", headers=mine)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == 'attachment; filename="news-0.tar"'
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        assert {(member.uid, member.uname) for member in archive} == {(0, "")}
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # from 3.10.12 and 3.11.4 on
        archive.extractall(tmp_path / "out")  # noqa: S202 what this test has made
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "news-0")
    assert model.config.num_labels == 2
    assert not left_over(tmp_path)
    lacking = client.get("/api/v1/tasks/news/model", params={"version": 7}, headers=mine)
    assert (lacking.status_code, "version 7 of 'news' is not kept" in lacking.json()["error"]) == (400, True)
    assert client.get("/api/v1/tasks/views/model", headers=mine).status_code == 404


def test_backup_comes_as_a_file_that_restores_and_the_log_says_who_took_it(
    client: TestClient, store: Store, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ensure_root(store, tmp_path, time.time())
    answer = client.post("/api/v1/backup", headers=header(store, AccessRole.ADMIN))
    assert answer.status_code == 200, answer.text
    assert not left_over(tmp_path)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "backup.tar").write_bytes(answer.content)
    restore(elsewhere / "backup.tar", elsewhere / "state")
    again = open_store(elsewhere / "state")
    with again.reading() as tx:
        assert tx.tokens.get("admin") is not None
    again.close()
    assert (elsewhere / "state/round.key").read_bytes() == (tmp_path / "round.key").read_bytes()
    with store.reading() as tx:
        (entry,) = tx.audit.newest(1)
    assert (entry.who, entry.action) == ("admin", "take a backup")


@pytest.mark.parametrize("role", [AccessRole.VIEWER, AccessRole.OPERATOR])
def test_backup_is_for_admins_and_archives_are_not_for_viewers(
    client: TestClient, store: Store, role: AccessRole
) -> None:
    mine = header(store, role)
    assert client.post("/api/v1/backup", headers=mine).status_code == 403
    assert client.get("/api/v1/tasks/views/model", headers=mine).status_code == (
        404 if role is AccessRole.OPERATOR else 403
    )


def test_archive_of_any_size_is_sent_in_little_memory(tmp_path: Path) -> None:
    size = 64 << 20
    with (tmp_path / "large").open("wb") as out:
        out.truncate(size)

    async def received() -> int:
        answer = sent((tmp_path / "large").open("rb"), "large")
        return sum([len(piece) async for piece in answer.body_iterator])

    tracemalloc.start()
    try:
        assert asyncio.run(received()) == size
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# -- how work is done


def test_work_that_is_asked_for_meanwhile_is_told_to_ask_again(tmp_path: Path) -> None:
    async def both() -> list[Any]:
        workshop, job = Workshop(), Examine(state_dir=str(tmp_path), all_blobs=False)
        first = asyncio.create_task(workshop.perform(job))
        await asyncio.sleep(0)
        second = await asyncio.gather(workshop.perform(job), return_exceptions=True)
        return [await first, *second, await workshop.perform(job)]

    first, second, third = asyncio.run(both())
    assert isinstance(second, HTTPException)
    assert (second.status_code, second.headers) == (409, {"Retry-After": "30"})
    assert json.loads(first) == json.loads(third)


def test_work_that_dies_is_the_servers_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RaffmError, match="the job ended with exit code 1 and no message"):
        asyncio.run(Workshop().perform(Examine(state_dir=str(tmp_path), all_blobs=False)))


def test_what_a_loss_of_power_left_of_work_is_cleared_up_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole backup stayed for good, with the coordinator's keys in it."""
    for name, age_s in ((".work-left", 2 * 86400), (".work-recent", 3600)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "made.tar").write_text("keys")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RaffmError, match="exit code 1"):
        asyncio.run(Workshop().make(tmp_path, lambda made_in: BackUp(state_dir=str(tmp_path), folder=made_in)))
    assert left_over(tmp_path) == [tmp_path / ".work-recent"]


def test_work_ends_with_the_api_and_takes_what_it_made_with_it(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path)
    folder = tmp_path / ".work-x"
    folder.mkdir()
    (folder / "secret").write_text("x")
    job = SaveModel(state_dir=str(tmp_path), folder=str(folder), task="news", version=None)
    command = [sys.executable, "-m", "coordinator.api.jobs"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        said, _ = process.communicate(msgspec.json.encode(job) + b"\n", timeout=60)  # which closes its input
    assert (process.returncode, said) == (1, b"")
    assert not folder.exists()


# -- the rest


@pytest.mark.long
def test_release_is_made_over_http_by_whom_the_log_says(
    client: TestClient,
    store: Store,
    tmp_path: Path,
    template_cache: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in template_cache.items():
        monkeypatch.setenv(name, value)
    trained(store, tmp_path)
    mine = header(store, AccessRole.OPERATOR)
    none = client.post("/api/v1/tasks/news/releases", json={}, headers=mine)
    assert (none.status_code, none.json()["error"]) == (
        400,
        "no device is known that could run it; see `coordinator device list`",
    )
    with store.transaction() as tx:
        tx.devices.hello("pi-5", "board", 1, 1.0)
        tx.devices.seen("pi-5", 1.0, able_device())
    made = client.post("/api/v1/tasks/news/releases", json={"precisions": ["fp32"], "days": 3}, headers=mine)
    assert made.status_code == 201, made.text
    assert (made.json()["release"], made.json()["is_approved"]) == (1, False)
    assert {export["precision"] for export in made.json()["exports"]} == {"fp32"}
    with store.reading() as tx:
        (entry,) = tx.audit.newest(1)
    assert (entry.who, entry.action) == ("operator", "create release")


def test_doctor_tells_what_he_tells_on_the_command_line(client: TestClient, store: Store, tmp_path: Path) -> None:
    ensure_root(store, tmp_path, time.time())
    (tmp_path / "round.key").chmod(0o644)
    answer = client.get("/api/v1/doctor", headers=header(store, AccessRole.OPERATOR))
    assert answer.status_code == 200, answer.text
    found = {one["check"]: one for one in answer.json()["findings"] if one["mark"] == "failure"}
    assert answer.json()["can_run"] is False
    assert "others may read round.key" in found["secrets"]["found"]


def test_fleet_says_what_its_devices_are_told(client: TestClient, store: Store, tmp_path: Path) -> None:
    mine = header(store, AccessRole.VIEWER)
    assert client.get("/api/v1/fleet", headers=mine).status_code == 404
    fleet = new_fleet(tmp_path)
    told = client.get("/api/v1/fleet", headers=mine).json()
    assert (told["broker"], told["authority"]) == ("mqtts://127.0.0.1:8883", fleet.authority.fingerprint)


def test_root_is_shown_and_the_next_is_installed_by_an_admin(client: TestClient, store: Store, tmp_path: Path) -> None:
    from coordinator.delivery.keys import held_keys
    from edge_sdk.protocol.signing import Role

    mine = header(store, AccessRole.ADMIN)
    assert client.get("/api/v1/root", headers=mine).status_code == 404
    file = ensure_root(store, tmp_path, time.time())
    shown = client.get("/api/v1/root", headers=mine).json()
    assert (shown["version"], shown["roles"]["release"]["threshold"]) == (1, 1)
    assert shown["file"] == json.loads(file.read_bytes())
    write_root(tmp_path / "next", next_root(file, {}, time.time(), 1e6), [])
    unsigned = client.post("/api/v1/root", json=json.loads((tmp_path / "next").read_bytes()), headers=mine)
    assert (unsigned.status_code, unsigned.json()["error"][:25]) == (400, "this cannot be installed:")
    write_root(tmp_path / "signed", next_root(file, {}, time.time(), 1e6), [*held_keys(tmp_path, Role.ROOT)])
    made = client.post("/api/v1/root", json=json.loads((tmp_path / "signed").read_bytes()), headers=mine)
    assert (made.status_code, made.json()["version"]) == (201, 2)
    assert root_in(file.read_bytes(), "root.json").payload
    assert json.loads(file.read_bytes()) == made.json()["file"]
    nothing = client.post("/api/v1/root", json={"role": "root"}, headers=mine)
    assert (nothing.status_code, "this holds no root of trust" in nothing.json()["error"]) == (400, True)


def test_board_is_the_one_that_the_command_prints(client: TestClient, store: Store) -> None:
    board = client.get("/api/v1/metrics/board", headers=header(store, AccessRole.VIEWER)).json()
    assert board["title"]
    assert board["panels"]
