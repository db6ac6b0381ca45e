"""Releases and rollouts over the API: what it shows, what it takes, who may."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient

from coordinator.api.access import make_token
from coordinator.api.app import create_app
from coordinator.store.database import Store
from coordinator.store.states import AccessRole
from tests.support.waiting_release import ANN, BOB, EVE, open_with_release, signed_by


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_with_release(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(store), raise_server_exceptions=False) as made:
        yield made


def header(store: Store, role: AccessRole = AccessRole.OPERATOR) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(store, role.value, role, None, time.time(), 'test')}"}


def signed(folder: Path, shown: dict[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """What a person downloads, signs elsewhere, and uploads."""
    return json.loads(signed_by(key, msgspec.json.encode(shown["to_sign"]), folder))


def test_release_is_signed_elsewhere_rolled_out_and_rolled_back(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    mine, plan = header(store), {"stages": ["50%", "100%"], "trial": {"min_accuracy": 0.5}}
    shown = client.get("/api/v1/releases/1", headers=mine).json()
    assert (shown["signatures"], shown["threshold"], shown["exports"][0]["precision"]) == (0, 2, "int8")
    early = client.post("/api/v1/releases/1/rollouts", json=plan, headers=mine)
    assert (early.status_code, "is not approved" in early.json()["error"]) == (400, True)
    for count, key in enumerate((ANN, BOB), start=1):
        answer = client.post("/api/v1/releases/1/approve", json=signed(tmp_path, shown, key), headers=mine)
        assert (answer.json()["signatures"], answer.json()["is_approved"]) == (count, count == 2)
    begun = client.post("/api/v1/releases/1/rollouts", json=plan, headers=mine)
    assert (begun.status_code, begun.json()["devices"]["pending"]) == (201, 4)
    assigned = client.get("/api/v1/rollouts/1/assignments?limit=3", headers=mine).json()
    assert ([it["stage"] for it in assigned["items"]].count(0) <= 2, assigned["after"]) == (True, "3")
    rest = client.get("/api/v1/tasks/news/assignments?limit=3&after=3", headers=mine).json()
    assert ([it["number"] for it in rest["items"]], rest["after"]) == ([4], None)
    for command, status in (
        ("pause", "paused"),
        ("resume", "running"),
        ("halt", "halted"),
        ("rollback", "rolling-back"),
    ):
        assert client.post(f"/api/v1/rollouts/1/{command}", headers=mine).json()["status"] == status
    assert client.post("/api/v1/rollouts/1/resume", headers=mine).status_code == 400
    with store.reading() as tx:
        noted = [entry.action for entry in reversed(tx.audit.newest(6))]
    assert noted == [
        *("approve release", "start rollout", "pause rollout", "resume rollout", "halt rollout", "roll back rollout"),
    ]


def test_signature_of_a_stranger_is_refused(client: TestClient, store: Store, tmp_path: Path) -> None:
    mine = header(store)
    shown = client.get("/api/v1/releases/1", headers=mine).json()
    answer = client.post("/api/v1/releases/1/approve", json=signed(tmp_path, shown, EVE), headers=mine)
    assert (answer.status_code, "is not a release key" in answer.json()["error"]) == (400, True)
    assert client.post("/api/v1/releases/1/approve", json={"a": 1}, headers=mine).status_code == 400
    unsigned = client.post("/api/v1/releases/1/approve", json=shown["to_sign"], headers=mine)
    assert (unsigned.status_code, "is not signed" in unsigned.json()["error"]) == (400, True)


def test_viewer_looks_and_changes_nothing(client: TestClient, store: Store) -> None:
    mine = header(store, AccessRole.VIEWER)
    assert [it["release"] for it in client.get("/api/v1/releases", headers=mine).json()["items"]] == [1]
    assert client.get("/api/v1/rollouts", headers=mine).json() == {"items": [], "after": None}
    for path in ("releases/1/approve", "releases/1/rollouts", "rollouts/1/halt"):
        assert client.post(f"/api/v1/{path}", json={}, headers=mine).status_code == 403


@pytest.mark.parametrize("path", ["releases/9", "rollouts/9", "rollouts/9/assignments"])
def test_what_there_is_not_is_not_found(client: TestClient, store: Store, path: str) -> None:
    answer = client.get(f"/api/v1/{path}", headers=header(store))
    assert (answer.status_code, "there is no" in answer.json()["error"]) == (404, True)


def test_plan_that_cannot_be_is_refused_with_what_is_wrong(client: TestClient, store: Store) -> None:
    answer = client.post("/api/v1/releases/1/rollouts", json={"success_share": 7}, headers=header(store))
    assert (answer.status_code, "success_share" in answer.json()["error"]) == (400, True)
