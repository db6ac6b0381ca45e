"""The dashboard over a real store, without a browser: who gets in, who may what, what is told and how it is escaped."""

from __future__ import annotations

import html
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from coordinator.api.access import make_token, revoke_token
from coordinator.config import task_of_toml
from coordinator.dashboard.tasks import example
from coordinator.fleet.revocation import revoke_device
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.states import AccessRole, Outcome, TaskStatus
from edge_sdk.errors import StoreAwayError
from tests.support.filled_store import TASK, fill_state
from tests.support.pages import AT, EVIL, FOREIGN, client_of, log_in, told

PAGES = (
    *("fleet", "rounds", "tasks", f"tasks/{TASK}", "devices/jetson-0000", "new-task"),
    *("releases", "releases/1", "releases/2", "releases/1/new-rollout", "rollouts/1", "running"),
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    fill_state(folder, 60, 2).close()
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    opened = open_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[TestClient]:
    with client_of(store, tmp_path) as made:
        yield made


# -- who gets in


def test_every_page_asks_for_a_token_first(client: TestClient) -> None:
    for path in PAGES:
        answer = client.get(f"{AT}/{path}")
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            f"{AT}/login?then=%2Fdashboard%2F{path.replace('/', '%2F')}",
        )
    assert client.post(f"{AT}/tasks/{TASK}/pause").headers["location"] == f"{AT}/login?then=%2Fdashboard"
    assert client.get("/").headers["location"] == f"{AT}/fleet"


def test_token_that_is_not_good_is_refused_and_not_repeated(client: TestClient, store: Store) -> None:
    revoked = make_token(store, "gone", AccessRole.ADMIN, None, time.time(), "a test")
    revoke_token(store, "gone", 1.0, "a test")
    for secret in ("", "raffm_nobody", revoked):
        answer = client.post(f"{AT}/login", data={"token": secret})
        assert (answer.status_code, told(answer)) == (401, "the token is unknown, revoked or expired")
        assert "set-cookie" not in answer.headers
        assert not secret or secret not in answer.text


def test_cookie_is_out_of_reach_of_scripts_other_sites_and_the_api(client: TestClient, store: Store) -> None:
    cookie = log_in(client, store, AccessRole.VIEWER).headers["set-cookie"].lower()
    for part in ("httponly", "samesite=strict", "path=/dashboard", "max-age=43200"):
        assert part in cookie
    assert "raffm_session=raffm_" not in cookie, "the token itself"
    assert client.get("/api/v1/tasks").status_code == 401
    with TestClient(client.app, base_url="https://testserver", headers={"Origin": "https://testserver"}) as over_tls:
        answer = log_in(over_tls, store, AccessRole.VIEWER, "bob")
        assert "secure" in answer.history[0].headers["set-cookie"].lower()


def test_login_leads_to_a_page_of_this_server_alone(client: TestClient, store: Store) -> None:
    for number, (then, goes) in enumerate(
        (
            (f"{AT}/devices/pi-1?page=2", f"{AT}/devices/pi-1?page=2"),
            ("https://evil.example/dashboard", AT),
            ("//evil.example/dashboard/x", AT),
            ("/\\evil.example", AT),
            (f"{AT}\\..\\..", AT),
            ("/dashboardevil", AT),
            ("javascript:alert(1)", AT),
        )
    ):
        answer = log_in(client, store, AccessRole.VIEWER, f"ann-{number}", then=then)
        assert answer.headers["location"] == goes, then


def test_session_ends_with_logging_out_and_with_its_token(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.VIEWER)
    session = client.cookies["raffm_session"]
    assert client.get(f"{AT}/fleet").status_code == 200
    client.post(f"{AT}/logout")
    client.cookies.set("raffm_session", session, path=AT)
    assert client.get(f"{AT}/fleet").status_code == 303
    client.cookies.clear()
    log_in(client, store, AccessRole.VIEWER, "bob")
    assert client.get(f"{AT}/fleet").status_code == 200
    revoke_token(store, "bob", 1.0, "a test")
    assert client.get(f"{AT}/fleet").status_code == 303


def test_page_says_when_to_ask_again_while_the_database_is_away(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(client, store, AccessRole.VIEWER)

    def away(_: Store) -> None:
        raise StoreAwayError("store news does not answer")

    monkeypatch.setattr(Store, "reading", away)
    answer = client.get(f"{AT}/fleet")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert told(answer) == "store news does not answer"


def test_dashboards_of_one_host_do_not_log_each_other_out(client: TestClient, store: Store, tmp_path: Path) -> None:
    """Browsers send a cookie to every port of its host."""
    log_in(client, store, AccessRole.VIEWER)
    with client_of(store, tmp_path) as other:
        other.base_url = other.headers["Origin"] = "http://testserver:8081"
        other.cookies = client.cookies.jar
        log_in(other, store, AccessRole.VIEWER, "bob")
        assert [each.get(f"{AT}/fleet").status_code for each in (client, other)] == [200, 200]
        other.post(f"{AT}/logout")
        assert [each.get(f"{AT}/fleet").status_code for each in (client, other)] == [200, 303]


# -- who may what


@pytest.mark.parametrize(("role", "may"), [(AccessRole.VIEWER, False), (AccessRole.OPERATOR, True)])
def test_viewer_has_no_buttons_and_is_refused_without_them(
    client: TestClient, store: Store, role: AccessRole, may: bool
) -> None:
    log_in(client, store, role)
    assert ("/pause" in client.get(f"{AT}/tasks/{TASK}").text) is may
    assert ("New task" in client.get(f"{AT}/tasks").text) is may
    answers = [
        client.post(f"{AT}/tasks/{TASK}/pause"),
        client.post(f"{AT}/tasks", data={"toml": ""}),
        client.get(f"{AT}/new-task"),
    ]
    assert [answer.status_code for answer in answers] == ([303, 400, 200] if may else [403] * 3)
    if not may:
        assert told(answers[0]) == "token 'ann' has the role viewer; this needs operator"
    with store.reading() as tx:
        assert tx.tasks.get(TASK).status is (TaskStatus.PAUSED if may else TaskStatus.RUNNING)


def test_other_sites_change_nothing(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.OPERATOR)
    for headers in FOREIGN:
        assert client.post(f"{AT}/tasks/{TASK}/stop", headers=headers).status_code == 403, headers
    with store.reading() as tx:
        assert tx.tasks.get(TASK).status is TaskStatus.RUNNING
    for verb, headers in (("pause", {}), ("stop", {"Origin": "", "Sec-Fetch-Site": "same-origin"})):
        assert client.post(f"{AT}/tasks/{TASK}/{verb}", headers=headers).status_code == 303
    with store.reading() as tx:
        assert tx.tasks.get(TASK).status is TaskStatus.STOPPED


def test_what_is_changed_is_in_the_audit_log_under_the_tokens_name(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.OPERATOR, "olga")
    for verb in ("pause", "start", "stop"):
        assert client.post(f"{AT}/tasks/{TASK}/{verb}").headers["location"] == f"{AT}/tasks/{TASK}"
    again = client.post(f"{AT}/tasks/{TASK}/stop")
    assert (again.status_code, told(again)) == (400, f"task {TASK!r} is stopped and cannot be stopped")
    with store.reading() as tx:
        entries = tx.audit.newest(3)
    assert [(one.who, one.action) for one in entries] == [
        ("olga", f"{verb} task") for verb in ("stop", "start", "pause")
    ]


# -- tasks


def test_example_is_a_task() -> None:
    assert task_of_toml(example().encode(), "task", Path("/")).rounds == 30


def test_task_is_created_from_toml_with_paths_from_the_state_folder_on(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "texts.csv").write_text("text,label\ngood,yes\nbad,no\n")
    toml = 'name = "views"\r\nmodel_dir = "."\r\ncalibration_file = "texts.csv"\r\ntest_file = "texts.csv"\r\nseed = 7'
    log_in(client, store, AccessRole.OPERATOR)
    assert client.post(f"{AT}/tasks", data={"toml": toml}).headers["location"] == f"{AT}/tasks/views"
    page = client.get(f"{AT}/tasks/views").text
    assert str(tmp_path / "texts.csv") in page
    chosen, _, usual = page.partition("<summary>")
    assert ("<dt>seed</dt>" in chosen, "<dt>quorum</dt>" in chosen, "<dt>quorum</dt>" in usual) == (True, False, True)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("", "task: Object missing required field `name`"),
        ("rounds = ", "task is not TOML: Invalid value (at end of document)"),
        ('name = "x"\nrounds = "ten"', "task: Expected `int`, got `str` - at `$.rounds`"),
        ("x = " + "[" * 5000, "task is not TOML: "),
        ('name = "x"\nmodel_dir = "m"\ncalibration_file = "c"\ntest_file = "t"', "config.json"),
    ],
)
def test_task_that_cannot_be_comes_back_with_one_line(client: TestClient, store: Store, toml: str, words: str) -> None:
    log_in(client, store, AccessRole.OPERATOR)
    answer = client.post(f"{AT}/tasks", data={"toml": toml})
    assert answer.status_code == 400
    assert words in told(answer)
    assert "\n" not in told(answer)
    assert html.escape(toml[:20], quote=False) in html.unescape(answer.text)


def test_form_that_is_too_large_or_garbled_is_refused(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.OPERATOR)
    for body, code in ((b"toml=" + b"x" * 70_000, 413), (b"toml=\xff", 400), (b"&".join([b"a=b"] * 20), 400)):
        answer = client.post(f"{AT}/tasks", content=body)
        assert (answer.status_code, bool(told(answer))) == (code, True)


# -- what is told


def test_every_page_and_file_tells_the_browser_to_run_nothing_else(client: TestClient, store: Store) -> None:
    login = client.get(f"{AT}/login")
    log_in(client, store, AccessRole.OPERATOR)
    pages = [client.get(f"{AT}/{path}") for path in PAGES]
    files = [client.get(f"{AT}/static/{name}") for name in ("dashboard.css", "dashboard.js", "icon.svg")]
    for answer in (login, *pages, *files, client.get(f"{AT}/devices/ghost"), client.get(f"{AT}/nothing")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == ("no-cache" if answer in files else "no-store")
    assert {answer.status_code for answer in (*pages, *files)} == {200}
    for answer in (login, *pages):
        assert "<style" not in answer.text
        assert ' style="' not in answer.text
        assert answer.text.count("<script") == answer.text.count('<script type="module" src="/dashboard/static/')


def test_what_a_device_says_is_shown_and_never_run(client: TestClient, store: Store) -> None:
    with store.transaction() as tx:
        tx.offers.failed(TASK, 2, "jetson-0000", 1.0, detail=EVIL)
    log_in(client, store, AccessRole.VIEWER)
    page = client.get(f"{AT}/devices/jetson-0000").text
    assert html.escape(EVIL) in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    assert "<img" not in page
    for address, found in (({"q": EVIL}, 200), ({"q": "a\0"}, 400), ({"group": EVIL}, 400), ({"then": EVIL}, 200)):
        answer = client.get(f"{AT}/{'login' if 'then' in address else 'fleet'}", params=address)
        assert answer.status_code == found, address
        assert "<img" not in answer.text
        assert "<script>" not in answer.text


def test_task_that_failed_says_why_and_what_it_says_is_never_run(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.VIEWER)
    assert "It failed" not in client.get(f"{AT}/tasks/{TASK}").text
    with store.transaction() as tx:
        tx.tasks.set_status(TASK, TaskStatus.FAILED, f"no weights in {EVIL}")
    page = client.get(f"{AT}/tasks/{TASK}").text
    assert "It failed: no weights in" in page
    assert "<img" not in page


def test_what_is_not_there_is_said_in_a_line(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.VIEWER)
    for path, code, words in (
        ("devices/%00", 400, "this address is not valid"),
        ("devices/ghost", 404, "there is no device 'ghost'"),
        ("tasks/ghost", 404, "there is no task 'ghost'; the tasks are news"),
        ("rounds?task=ghost", 404, "there is no task 'ghost'; the tasks are news"),
        ("releases?task=ghost", 404, "there is no task 'ghost'; the tasks are news"),
        ("running?task=ghost", 404, "there is no task 'ghost'; the tasks are news"),
        ("releases/9", 404, "there is no release 9; the releases are 1, 2"),
        ("releases/9/to-sign", 404, "there is no release 9; the releases are 1, 2"),
        ("rollouts/9", 404, "there is no rollout 9; the rollouts are 1"),
        ("rollouts/x", 400, "this address is not valid"),
        ("rollouts/1?state=asleep", 400, "this address is not valid"),
        ("fleet?page=0", 400, "this address is not valid"),
        ("fleet?state=asleep", 400, "this address is not valid"),
        ("nothing", 404, "Not Found"),
    ):
        answer = client.get(f"{AT}/{path}")
        assert answer.status_code == code, path
        assert words in told(answer)


def test_page_beyond_the_last_is_the_last(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.VIEWER)
    assert "Page 2 of 2" in client.get(f"{AT}/fleet?page=99").text
    for path in ("running?page=99", "rollouts/1?page=99"):
        assert "Page 2 of 2" in client.get(f"{AT}/{path}").text


def test_empty_store_says_on_each_page_what_comes_first(tmp_path: Path) -> None:
    opened = Store(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    with client_of(opened, tmp_path) as client:
        log_in(client, opened, AccessRole.VIEWER)
        for path, words in (
            ("fleet", "No device has connected yet."),
            ("rounds", "There is no task yet."),
            ("tasks", "There is no task yet."),
            ("releases", "Nothing has been released yet."),
            ("running", "Nothing has been released yet."),
        ):
            assert words in client.get(f"{AT}/{path}").text
    opened.close()


def test_round_is_told_in_figures(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.VIEWER)
    page = client.get(f"{AT}/rounds").text
    with store.reading() as tx:
        open_round, closed = tx.offers.tally(TASK, 0)[2], tx.offers.tally(TASK, 0)[1]
    late = closed[Outcome.OFFERED]
    delivered = open_round[Outcome.UPDATED]
    assert f"{delivered} delivered" in page
    assert f'<td data-is="Stragglers" class="n">{late}</td>' in page
    assert "Round 2 is collecting updates" in page


def test_device_that_is_revoked_or_was_never_there_is_said_to_be(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.VIEWER)
    revoke_device(store, "jetson-0000", time.time() - 90, "a test")
    with store.transaction() as tx:
        tx.devices.enrol("new", None, time.time())
    for path in ("fleet?q=jetson-0000", "devices/jetson-0000"):
        assert "revoked 1 min ago" in client.get(f"{AT}/{path}").text
    assert "It has enrolled, but not connected yet." in client.get(f"{AT}/devices/new").text
    assert "not yet" in client.get(f"{AT}/fleet?q=new").text


def test_damaged_blob_takes_the_pictures_and_nothing_else(client: TestClient, store: Store, tmp_path: Path) -> None:
    log_in(client, store, AccessRole.VIEWER)
    assert '<svg class="part"' in client.get(f"{AT}/fleet").text
    for blob in (tmp_path / "blobs").iterdir():
        blob.write_bytes(b"\0" + blob.read_bytes()[1:])
    with client_of(store, tmp_path) as later:
        log_in(later, store, AccessRole.VIEWER, "bob")
        for path in PAGES:
            if path != "new-task" and "new-rollout" not in path:
                answer = later.get(f"{AT}/{path}")
                assert (answer.status_code, '<svg class="part"' in answer.text) == (200, False), path


def test_answer_to_a_form_says_where_its_page_is(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.OPERATOR)
    for path, own in ((f"tasks/{TASK}/start", f"tasks/{TASK}"), ("rollouts/1/pause", "rollouts/1")):
        refused = client.post(f"{AT}/{path}")
        assert refused.status_code == 400
        assert f'data-own="{AT}/{own}"' in refused.text
        assert "data-own" not in client.get(f"{AT}/{own}").text
