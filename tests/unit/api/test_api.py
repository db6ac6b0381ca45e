"""The API over a real store: who may do what, what it answers, what it writes into the audit log."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coordinator.api.access import make_token, revoke_token
from coordinator.api.app import create_app
from coordinator.cli import app
from coordinator.config import TaskConfig
from coordinator.store.database import Store
from coordinator.store.records import EvaluationRecord, RoundRecord, VersionRecord
from coordinator.store.states import AccessRole, TaskStatus
from coordinator.store.states import Phase as RoundPhase
from edge_sdk.errors import ConfigurationError
from tests.support.light_model import light_task

TASK = {"model_dir": "", "calibration_file": "", "test_file": ""}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    yield opened
    opened.close()


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(store), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def fleet(store: Store, tmp_path: Path) -> None:
    """Twelve devices, and a task of three rounds."""
    task = light_task(tmp_path, "news")
    with store.transaction() as tx:
        for number in range(12):
            tx.devices.hello(f"pi-{number:02}", "raspberry-pi-4-4gb", 1, 100.0)
        tx.tasks.add("news", msgspec.json.encode(task), 1.0)
        tx.tasks.set_status("news", TaskStatus.RUNNING)
        for number in (1, 2, 3):
            tx.rounds.add(RoundRecord("news", number, "b" * 64, RoundPhase.CLOSED, 1, 10.0, 20.0, 15.0))


def header(store: Store, role: AccessRole, name: str = "ann", days: float | None = None) -> dict[str, str]:
    secret = make_token(store, name, role, days, time.time(), "a test")
    return {"Authorization": f"Bearer {secret}"}


# -- who may


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer raffm_nobody"}, {"Authorization": "Basic YTpi"}])
def test_nothing_is_told_without_a_good_token(client: TestClient, header: dict[str, str]) -> None:
    for path in ("devices", "tasks", "tokens", "audit"):
        answer = client.get(f"/api/v1/{path}", headers=header)
        assert answer.status_code == 401
        assert "error" in answer.json()


@pytest.mark.parametrize(("role", "allowed"), [(AccessRole.VIEWER, 0), (AccessRole.OPERATOR, 1), (AccessRole.ADMIN, 2)])
@pytest.mark.usefixtures("fleet")
def test_each_role_may_what_the_ones_below_may(
    client: TestClient, store: Store, role: AccessRole, allowed: int
) -> None:
    mine = header(store, role)
    answers = [
        client.get("/api/v1/devices", headers=mine),
        client.post("/api/v1/tasks/news/pause", headers=mine),
        client.get("/api/v1/audit", headers=mine),
    ]
    assert [answer.status_code for answer in answers] == [200 if rank <= allowed else 403 for rank in range(3)]
    if allowed < 2:
        assert answers[2].json() == {"error": f"token 'ann' has the role {role.value}; this needs admin"}


def test_token_that_expired_or_was_revoked_is_worth_nothing(client: TestClient, store: Store) -> None:
    old, gone = header(store, AccessRole.ADMIN, "old", -1), header(store, AccessRole.ADMIN, "gone")
    assert client.get("/api/v1/tasks", headers=gone).status_code == 200
    revoke_token(store, "gone", 1.0, "a test")
    for mine in (old, gone):
        answer = client.get("/api/v1/tasks", headers=mine)
        assert (answer.status_code, answer.json()["error"]) == (401, "the token is unknown, revoked or expired")


def test_secret_of_a_token_is_nowhere_in_the_store(store: Store, tmp_path: Path) -> None:
    secret = make_token(store, "ann", AccessRole.VIEWER, None, 1.0, "a test")
    store.close()
    assert not [path for path in tmp_path.iterdir() if secret.encode() in path.read_bytes()]


def test_name_of_a_token_is_taken_once(store: Store) -> None:
    make_token(store, "ann", AccessRole.VIEWER, None, 1.0, "a test")
    with pytest.raises(ConfigurationError, match="token 'ann' exists"):
        make_token(store, "ann", AccessRole.ADMIN, None, 1.0, "a test")
    with pytest.raises(ConfigurationError, match="no token 'bob'; the tokens are ann"):
        revoke_token(store, "bob", 1.0, "a test")


# -- what it answers


@pytest.mark.usefixtures("fleet")
def test_pages_follow_each_other_to_the_end(client: TestClient, store: Store) -> None:
    mine = header(store, AccessRole.VIEWER)
    seen, after = list[str](), ""
    while after is not None:
        page = client.get("/api/v1/devices", params={"limit": 5} | ({"after": after} if after else {}), headers=mine)
        seen += [device["id"] for device in page.json()["items"]]
        after = page.json()["after"]
    assert seen == [f"pi-{number:02}" for number in range(12)]
    first = client.get("/api/v1/tasks/news/rounds", params={"limit": 2}, headers=mine).json()
    rest = client.get("/api/v1/tasks/news/rounds", params={"limit": 2, "after": first["after"]}, headers=mine).json()
    assert [known["number"] for known in (*first["items"], *rest["items"])] == [1, 2, 3]
    assert rest["after"] is None


def test_pages_of_what_has_names_go_on_after_a_name_and_say_where_it_is_gone(client: TestClient, store: Store) -> None:
    mine = header(store, AccessRole.ADMIN)
    for name in ("bob", "eve", "kim"):
        make_token(store, name, AccessRole.VIEWER, None, 1.0, "a test")
    first = client.get("/api/v1/tokens", params={"limit": 2}, headers=mine).json()
    assert ([one["name"] for one in first["items"]], first["after"]) == (["ann", "bob"], "bob")
    rest = client.get("/api/v1/tokens", params={"after": "bob"}, headers=mine).json()
    assert ([one["name"] for one in rest["items"]], rest["after"]) == (["eve", "kim"], None)
    gone = client.get("/api/v1/tokens", params={"after": "lee"}, headers=mine)
    assert (gone.status_code, gone.json()["error"]) == (
        400,
        "after='lee' does not exist any more: begin again with the first page",
    )


@pytest.mark.usefixtures("fleet")
def test_versions_of_a_task_come_in_pages_with_their_accuracy(client: TestClient, store: Store) -> None:
    with store.transaction() as tx:
        for number in (0, 1, 2):
            tx.versions.add(VersionRecord("news", number, "a" * 64, (), 5.0))
            tx.evaluations.put(EvaluationRecord("news", number, "half", 10, number / 10, 0.5, 7))
    mine = header(store, AccessRole.VIEWER)
    first = client.get("/api/v1/tasks/news/versions", params={"limit": 2}, headers=mine).json()
    assert first["after"] == "1"
    assert first["items"][1] == {"number": 1, "created_s": 5.0, "accuracy": {"half": 0.1}}
    rest = client.get("/api/v1/tasks/news/versions", params={"after": 1}, headers=mine).json()
    assert ([one["number"] for one in rest["items"]], rest["after"]) == ([2], None)


@pytest.mark.usefixtures("fleet")
def test_what_is_not_there_is_not_found(client: TestClient, store: Store) -> None:
    mine = header(store, AccessRole.ADMIN)
    for method, path, words in (
        ("get", "devices/ghost", "there is no device 'ghost'"),
        ("get", "tasks/views", "there is no task 'views'; the tasks are news"),
        ("post", "tasks/views/stop", "there is no task 'views'; the tasks are news"),
        ("get", "tasks/views/rounds", "there is no task 'views'; the tasks are news"),
        ("delete", "tokens/bob", "there is no token 'bob'; the tokens are ann"),
    ):
        answer = client.request(method, f"/api/v1/{path}", headers=mine)
        assert (answer.status_code, answer.json()) == (404, {"error": words})


def test_whatever_is_wrong_is_said_in_one_form(client: TestClient, store: Store) -> None:
    mine = header(store, AccessRole.ADMIN)
    for method, path, code, words in (
        ("get", "/api/v1/devices?limit=0", 422, "query.limit: Input should be greater than or equal to 1"),
        ("get", "/api/v1/nothing", 404, "Not Found"),
        ("patch", "/api/v1/tasks", 405, "Method Not Allowed"),
    ):
        answer = client.request(method, path, headers=mine)
        assert (answer.status_code, answer.json()) == (code, {"error": words})
    odd = client.post("/api/v1/tokens", json={"name": ["hush"]}, headers=mine)
    assert (odd.status_code, list(odd.json())) == (422, ["error"])
    assert "hush" not in odd.text
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_operator_creates_pauses_starts_and_stops_a_task_and_the_log_says_so(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    examples = tmp_path / "texts.csv"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    examples.write_text("text,label\ngood,yes\nbad,no\n")
    mine, admin = header(store, AccessRole.OPERATOR, "olga"), header(store, AccessRole.ADMIN, "root")
    task = {
        "name": "news",
        "model_dir": str(tmp_path),
        "calibration_file": str(examples),
        "test_file": str(examples),
    }
    made = client.post("/api/v1/tasks", json=task | {"rounds": 3, "schedule": {"every_s": 60}}, headers=mine)
    assert made.status_code == 201, made.text
    assert (made.json()["status"], made.json()["settings"]["schedule"]["every_s"]) == ("pending", 60.0)
    for word, status in (("pause", "paused"), ("start", "pending"), ("stop", "stopped")):
        assert client.post(f"/api/v1/tasks/news/{word}", headers=mine).json()["status"] == status
    again = client.post("/api/v1/tasks/news/stop", headers=mine)
    assert (again.status_code, again.json()["error"]) == (400, "task 'news' is stopped and cannot be stopped")
    entries = client.get("/api/v1/audit", params={"limit": 4}, headers=admin).json()["items"]
    assert [(one["who"], one["action"], one["subject"]) for one in entries] == [
        ("olga", f"{word} task", "news") for word in ("stop", "start", "pause", "create")
    ]


@pytest.mark.usefixtures("fleet")
def test_operator_puts_a_device_into_a_group(client: TestClient, store: Store) -> None:
    mine = header(store, AccessRole.OPERATOR, "olga")
    moved = client.post("/api/v1/devices/pi-04/group", json={"group": "canary"}, headers=mine)
    assert moved.json()["group"] == "canary"
    assert client.get("/api/v1/devices/pi-04", headers=mine).json() == moved.json()
    refused = client.post("/api/v1/devices/pi-04/group", json={"group": "No Name"}, headers=mine)
    assert (refused.status_code, "group" in refused.json()["error"]) == (400, True)
    with store.reading() as tx:
        (entry,) = tx.audit.newest(1)
    assert (entry.who, entry.action, entry.subject) == ("olga", "put into group canary", "pi-04")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "task: Object missing required field `name`"),
        (TASK | {"name": "news", "rounds": "x"}, "task: Expected `int`, got `str` - at `$.rounds`"),
        (TASK | {"name": "news", "extra": 1}, "task: Object contains unknown field `extra`"),
        (TASK | {"name": "no name"}, "task 'no name' is not usable"),
        (TASK | {"name": "news"}, "config.json"),
    ],
)
def test_task_that_cannot_be_is_refused_in_the_words_of_the_command_line(
    client: TestClient, store: Store, settings: dict[str, Any], words: str
) -> None:
    answer = client.post("/api/v1/tasks", json=settings, headers=header(store, AccessRole.OPERATOR))
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_admin_makes_a_token_that_lets_in_and_takes_it_back(client: TestClient, store: Store) -> None:
    admin = header(store, AccessRole.ADMIN)
    made = client.post("/api/v1/tokens", json={"name": "page", "role": "viewer", "days": 1}, headers=admin)
    mine = {"Authorization": f"Bearer {made.json()['secret']}"}
    assert client.get("/api/v1/tasks", headers=mine).json()["items"] == []
    listed = client.get("/api/v1/tokens", headers=admin).json()["items"]
    assert [(one["name"], one["role"]) for one in listed] == [("ann", "admin"), ("page", "viewer")]
    assert made.json()["secret"] not in json.dumps(listed)
    assert client.delete("/api/v1/tokens/page", headers=admin).status_code == 204
    assert client.get("/api/v1/tasks", headers=mine).status_code == 401


def test_settings_of_a_task_read_back_as_they_were_sent(tmp_path: Path) -> None:
    task = light_task(tmp_path)
    assert msgspec.convert(msgspec.to_builtins(task), TaskConfig) == task


# -- any request


@pytest.mark.usefixtures("fleet")
def test_no_request_that_the_document_allows_is_the_servers_fault(store: Store, tmp_path: Path) -> None:
    import schemathesis  # two seconds, of which other tests' workers have no need
    from schemathesis.checks import not_a_server_error

    app = create_app(store, tmp_path)
    mine = header(store, AccessRole.ADMIN)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)

    @settings(
        max_examples=30,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from([found.ok() for found in schema.get_all_operations()]))
        case = data.draw(operation.as_strategy())
        case.call_and_validate(headers=mine, checks=(not_a_server_error,))

    check()


# -- what clients do


def test_page_about_the_operations_has_them_all_and_loads_nothing(client: TestClient) -> None:
    answer = client.get("/docs")
    paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            assert f"{method.upper()} {path}</h3>" in answer.text
    assert not re.search(r"<script|<link|<img|\ssrc=|https?:", answer.text)
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_head_is_answered_as_get(client: TestClient, store: Store) -> None:
    assert client.head("/health").status_code == 200
    assert client.head("/api/v1/tasks").status_code == 401
    assert client.head("/api/v1/tasks", headers=header(store, AccessRole.VIEWER)).status_code == 200
    assert client.head("/api/v1/tasks/news/stop", headers=header(store, AccessRole.ADMIN, "bob")).status_code == 405


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tasks", '{"\\ud800": 1}'),
        ("tasks", '{"name": "x", "model_dir": "\\ud800", "calibration_file": "a", "test_file": "b"}'),
        ("tasks", '{"name": "x", "model_dir": "' + 5000 * "x" + '", "calibration_file": "a", "test_file": "b"}'),
        ("releases/1/approve", '{"payload": "\\ud800"}'),
    ],
)
def test_strange_text_is_the_callers_mistake(client: TestClient, store: Store, path: str, body: str) -> None:
    as_json = header(store, AccessRole.ADMIN) | {"Content-Type": "application/json"}
    answer = client.post(f"/api/v1/{path}", content=body, headers=as_json)
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize("days", [float("nan"), float("inf"), 36501.0])
def test_token_of_days_that_are_none_is_not_made(store: Store, days: float) -> None:
    with pytest.raises(ConfigurationError, match="is valid for up to 36500 days"):
        make_token(store, "ann", AccessRole.ADMIN, days, time.time(), "a test")


@pytest.mark.parametrize(
    "words", [("release", "create", "news"), ("root", "rotate", "root-2.json", "--from", "root.json")]
)
def test_end_that_no_calendar_has_is_refused_by_the_commands(tmp_path: Path, words: tuple[str, ...]) -> None:
    """One release that expires in the year 29000 ended every later `release list`."""
    options = () if words[0] == "root" else ("--state-dir", str(tmp_path))
    typed = CliRunner().invoke(app, [*words, "--days", "1e7", *options])
    assert typed.exit_code == 2
    assert "'--days': 10000000.0 is not in the range" in typed.output


@pytest.mark.parametrize(
    "words",
    [
        ("release", "create", "news", "--days", "nan"),
        ("fleet", "init", "--host", "localhost", "--certificate-days", "nan"),
        ("device", "token", "--hours", "nan"),
        ("root", "rotate", "root-2.json", "--from", "root.json", "--days", "nan"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_span_that_is_no_number_is_refused_by_the_commands(tmp_path: Path, words: tuple[str, ...]) -> None:
    """It is in every range. A release of nan days ended every later `release list`, and the coordinator's sweep."""
    options = () if words[0] == "root" else ("--state-dir", str(tmp_path))
    typed = CliRunner().invoke(app, [*words, *options])
    assert (typed.exit_code, [*tmp_path.iterdir()]) == (2, [])
    assert "nan is not a number" in typed.output


def test_page_that_no_page_ended_with_is_the_callers_mistake(client: TestClient, store: Store) -> None:
    """PostgreSQL takes no NUL."""
    assert client.get("/api/v1/devices?after=%00", headers=header(store, AccessRole.VIEWER)).status_code == 422
