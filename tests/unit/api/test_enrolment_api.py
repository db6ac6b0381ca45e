"""Enrolling and revoking over HTTP: who may, what comes back, and what a stranger costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi.testclient import TestClient

from coordinator.api.access import make_token
from coordinator.fleet.folder import Fleet, FleetSettings, init_fleet, keep_settings
from coordinator.store.database import Store
from coordinator.store.states import AccessRole
from edge_sdk.protocol.identity import MAX_ENROLMENT_BYTES
from edge_sdk.security.identity import Identity
from tests.support.broker import free_port
from tests.support.secured import new_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return new_fleet(tmp_path, port=free_port())


def bearer(store: Store, role: AccessRole) -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(store, role.value, role, None, time.time(), 'a test')}"}


def asked(folder: Path, device: str = "pi-5") -> dict[str, str]:
    der = Identity.of(folder / device).request(device)
    return {"device": device, "request": x509.load_der_x509_csr(der).public_bytes(Encoding.PEM).decode()}


def secret_for(client: TestClient, store: Store, **wanted: Any) -> dict[str, str]:
    """The header of a new one-time token."""
    made = client.post("/api/v1/enrolments", headers=bearer(store, AccessRole.ADMIN), json=wanted)
    assert made.status_code == 201
    return {"Authorization": f"Bearer {made.json()['secret']}"}


def test_device_enrols_with_a_token_that_an_admin_has_made(
    client: TestClient, store: Store, fleet: Fleet, tmp_path: Path
) -> None:
    admin = bearer(store, AccessRole.ADMIN)
    made = client.post("/api/v1/enrolments", headers=admin, json={"device": "pi-5", "group": "canary"}).json()
    assert fleet.authority.fingerprint in made["command"]
    assert made["secret"] not in made["command"]
    answer = client.post("/enroll", headers={"Authorization": f"Bearer {made['secret']}"}, json=asked(tmp_path))
    told = answer.json()
    assert (answer.status_code, told["broker"], told["fleet"]) == (200, fleet.settings.broker, "default")
    assert told["root"] == (tmp_path / "root.json").read_text()
    certificate = x509.load_pem_x509_certificate(told["certificate"].encode())
    fleet.authority.check(certificate, time.time())
    device = client.get("/api/v1/devices/pi-5", headers=admin).json()
    assert (device["group"], device["profile"], device["revoked_s"]) == ("canary", "not-seen", None)
    (shown,) = client.get("/api/v1/devices/pi-5/certificates", headers=admin).json()["items"]
    assert int(shown["serial"], 16) == certificate.serial_number
    assert client.get("/api/v1/devices/pi-6/certificates", headers=admin).status_code == 404
    (used,) = client.get("/api/v1/enrolments", headers=admin).json()["items"]
    assert (used["used_by"], "secret" in used, "digest" in used) == ("pi-5", False, False)
    audit = [entry["action"] for entry in client.get("/api/v1/audit", headers=admin).json()["items"]]
    assert {"enrol device", "create enrolment token"} <= {*audit}


def test_authority_is_shown_to_anybody(client: TestClient, fleet: Fleet) -> None:
    answer = client.get("/enroll/authority")
    assert answer.content == fleet.authority.certificate_pem


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize("role", [AccessRole.VIEWER, AccessRole.OPERATOR])
def test_only_an_admin_makes_and_withdraws_tokens(client: TestClient, store: Store, role: AccessRole) -> None:
    mine = bearer(store, role)
    assert client.post("/api/v1/enrolments", headers=mine, json={}).status_code == 403
    assert client.delete("/api/v1/enrolments/0123456789ab", headers=mine).status_code == 403
    assert client.get("/api/v1/enrolments", headers=mine).status_code == 200


@pytest.mark.usefixtures("fleet")
def test_token_that_is_withdrawn_is_worth_nothing(client: TestClient, store: Store, tmp_path: Path) -> None:
    header = secret_for(client, store)
    (known,) = client.get("/api/v1/enrolments", headers=bearer(store, AccessRole.VIEWER)).json()["items"]
    root = {"Authorization": f"Bearer {make_token(store, 'root', AccessRole.ADMIN, None, time.time(), 'a test')}"}
    assert client.delete(f"/api/v1/enrolments/{known['id']}", headers=root).status_code == 204
    assert client.post("/enroll", headers=header, json=asked(tmp_path)).status_code == 401
    assert client.delete(f"/api/v1/enrolments/{known['id']}", headers=root).status_code == 400


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(
    "header",
    [{}, {"Authorization": "Bearer raffm_enrol_guess"}, {"Authorization": "Basic YTpi"}, {"Authorization": ""}],
)
def test_stranger_is_refused_in_one_line(client: TestClient, tmp_path: Path, header: dict[str, str]) -> None:
    answer = client.post("/enroll", headers=header, json=asked(tmp_path))
    assert (answer.status_code, answer.json()) == (401, {"error": "the token is unknown"})


def test_token_of_the_api_enrols_nobody_and_one_to_enrol_with_opens_nothing(
    client: TestClient, store: Store, fleet: Fleet, tmp_path: Path
) -> None:
    del fleet
    admin = bearer(store, AccessRole.ADMIN)
    assert client.post("/enroll", headers=admin, json=asked(tmp_path)).status_code == 401
    made = client.post("/api/v1/enrolments", headers=admin, json={}).json()
    assert client.get("/api/v1/devices", headers={"Authorization": f"Bearer {made['secret']}"}).status_code == 401


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"device": "pi-5"}', b'{"device": "Pi 5", "request": ""}', b"[" * 9000, b"\xff\xfe"],
)
def test_body_that_is_no_request_is_refused(client: TestClient, store: Store, body: bytes) -> None:
    answer = client.post("/enroll", headers=secret_for(client, store), content=body)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]


@pytest.mark.usefixtures("fleet")
def test_body_that_is_too_long_is_not_read_to_its_end(client: TestClient, store: Store) -> None:
    given = 0

    def endless() -> Iterator[bytes]:
        nonlocal given
        while given < 64 * MAX_ENROLMENT_BYTES:
            given += 1024
            yield b" " * 1024

    answer = client.post("/enroll", headers=secret_for(client, store), content=endless())
    assert (answer.status_code, answer.json()["error"]) == (413, "an enrolment request has at most 16384 bytes")


def test_device_is_revoked_by_an_operator_who_hears_what_is_left_to_do(
    client: TestClient, store: Store, fleet: Fleet, tmp_path: Path
) -> None:
    client.post("/enroll", headers=secret_for(client, store), json=asked(tmp_path))
    viewer, operator = bearer(store, AccessRole.VIEWER), bearer(store, AccessRole.OPERATOR)
    assert client.post("/api/v1/devices/pi-5/revoke", headers=viewer).status_code == 403
    answer = client.post("/api/v1/devices/pi-5/revoke", headers=operator).json()
    assert answer["cut_off_s"] is None
    assert f"nobody answers at {fleet.settings.broker}" in answer["problem"]
    assert client.get("/api/v1/devices/pi-5", headers=viewer).json()["revoked_s"] is not None
    assert client.post("/api/v1/devices/nobody/revoke", headers=operator).status_code == 400


def test_broker_s_folder_that_this_user_may_not_write_keeps_nobody_in_and_nobody_out(
    client: TestClient, store: Store, fleet: Fleet, tmp_path: Path
) -> None:
    """As root's, where root has written it and the API runs as another user."""
    closed = tmp_path / "closed"
    closed.touch()
    keep_settings(fleet, broker_dir=str(closed / "broker"))
    admin = {"Authorization": f"Bearer {make_token(store, 'boss', AccessRole.ADMIN, None, time.time(), 'a test')}"}
    for folder in ("old", "new"):
        made = client.post("/api/v1/enrolments", headers=admin, json={"device": "pi-5"}).json()
        header = {"Authorization": f"Bearer {made['secret']}"}
        assert client.post("/enroll", headers=header, json=asked(tmp_path / folder)).status_code == 200
    answer = client.post("/api/v1/devices/pi-5/revoke", headers=admin)
    assert answer.status_code == 200
    assert answer.json()["problem"].startswith("pi-5 is revoked, but the broker could not be told: ")
    assert client.get("/api/v1/devices/pi-5", headers=admin).json()["revoked_s"] is not None


def test_token_of_an_open_fleet_is_a_password_and_enrols_nobody(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    settings = FleetSettings(name="barn", hosts=("a.example",), broker="mqtts://a.example:8883", is_open=True)
    init_fleet(tmp_path, settings)
    admin = bearer(store, AccessRole.ADMIN)
    made = client.post("/api/v1/enrolments", headers=admin, json={"device": "pi-5", "group": "canary"})
    assert made.status_code == 201, made.text
    assert made.json()["command"] == (
        "edge-agent run --device pi-5 --broker mqtts://a.example:8883 --fleet barn --user pi-5 --password-file token "
        "--root root.json --data FILE --ca-file authority.pem"
    )
    listed = (tmp_path / "broker/passwords").read_text()
    assert [line.partition(":")[0] for line in listed.splitlines()] == ["coordinator@barn", "pi-5"]
    assert made.json()["secret"] not in listed
    nobody = client.post("/api/v1/enrolments", headers=admin, json={})
    assert (nobody.status_code, "give --device" in nobody.json()["error"]) == (400, True)
    mine = {"Authorization": f"Bearer {made.json()['secret']}"}
    refused = client.post("/enroll", headers=mine, json=asked(tmp_path))
    assert (refused.status_code, "this fleet is open" in refused.json()["error"]) == (404, True)
    assert client.get("/api/v1/fleet", headers=admin).json()["is_open"] is True
    with store.reading() as tx:
        assert tx.devices.get("pi-5").group == "canary"
        assert tx.audit.newest(1)[0].action == "create device password"


def test_fleet_without_an_authority_enrols_nobody_and_revokes_all_the_same(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    with store.transaction() as tx:
        tx.devices.hello("pi-5", "board", 1, 1.0)
    admin = bearer(store, AccessRole.ADMIN)
    for path in ("/enroll", "/api/v1/enrolments"):
        answer = client.post(path, headers=admin, json=asked(tmp_path))
        assert (answer.status_code, answer.json()["error"]) == (
            404,
            "this fleet has no authority: devices cannot enrol; make one by `coordinator fleet init`",
        )
    answer = client.post("/api/v1/devices/pi-5/revoke", headers=admin).json()
    assert (
        answer["problem"]
        == "this fleet has no authority, so its broker still admits the device: change the broker's passwords"
    )
