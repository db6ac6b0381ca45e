"""Releases and rollouts on pages, over a real store: who may what, what is asked for, what is told of what is wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from markupsafe import escape

from coordinator.delivery.approving import approve, known_release, signatures_by
from coordinator.delivery.plans import read_plan
from coordinator.delivery.starting import start_rollout
from coordinator.store.database import Store
from coordinator.store.plan import Plan
from coordinator.store.states import AccessRole, AssignmentStatus, RolloutStatus
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import MAX_MESSAGE_BYTES
from edge_sdk.protocol.releases import Trial
from tests.support.pages import AT, EVIL, FOREIGN, client_of, log_in, told
from tests.support.signed import export
from tests.support.waiting_release import ANN, BOB, EVE, TASK, add_release, open_with_release, signed_by

TYPED = {
    "stages": " 50%, 100% ",
    "success": "80",
    "error": "25",
    "health_interval": "60",
    "trial": "2",
    "min_accuracy": "0.5",
    "max_accuracy_loss": "",
    "max_latency_ms": " ",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_with_release(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[TestClient]:
    with client_of(store, tmp_path) as made:
        yield made


def post(client: TestClient, path: str, headers: dict[str, str] | None = None, **fields: str) -> Response:
    return client.post(f"{AT}/{path}", data=fields, headers=headers)


def shown(client: TestClient, path: str) -> str:
    answer = client.get(f"{AT}/{path}")
    assert answer.status_code == 200
    return answer.text


def approved(store: Store, release: int = 1) -> None:
    with store.transaction() as tx:
        approve(tx, release, signatures_by(known_release(tx, release), [ANN, BOB]), 1.0, "test")


def rolled_out(store: Store, release: int = 1) -> int:
    """A rollout that runs."""
    approved(store, release)
    with store.transaction() as tx:
        return start_rollout(tx, release, Plan(stages=("50%", "100%")), time.time(), "test").rollout


def buttons(page: str) -> list[str]:
    return re.findall(r'action="/dashboard/rollouts/1/(\w+)"', page)


def status_of(store: Store, rollout: int = 1) -> RolloutStatus:
    with store.reading() as tx:
        known = tx.rollouts.get(rollout)
    assert known is not None
    return known.status


# -- releases


def test_release_is_looked_at_signed_elsewhere_by_two_and_approved(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    log_in(client, store, AccessRole.OPERATOR, "olga")
    page = shown(client, "releases/1")
    assert "lacks 2 signatures" in page
    assert "100.0 %<small>of 100 examples" in page
    assert "<span>4 board</span>" in page
    assert "new-rollout" not in page
    file = client.get(f"{AT}/releases/1/to-sign")
    assert file.headers["content-disposition"] == 'attachment; filename="release-1.json"'
    for key, words in ((ANN, "lacks 1 signature"), (BOB, "approved")):
        answer = post(client, "releases/1/approve", signed=signed_by(key, file.content, tmp_path).decode())
        assert (answer.status_code, answer.headers["location"]) == (303, f"{AT}/releases/1")
        page = shown(client, "releases/1")
        assert words in page
        assert f"<code>{key.public_key().public_bytes_raw().hex()[:16]}</code> <small>signed</small>" in page
    assert "/releases/1/new-rollout" in page
    assert "/releases/1/approve" not in page, "there is nobody left to sign"
    with store.reading() as tx:
        assert [(one.who, one.action) for one in tx.audit.newest(2)] == [("olga", "approve release")] * 2


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("this is not the manifest of a release: ", lambda *_: b""),
        ("this is not the manifest of a release: ", lambda *_: EVIL.encode()),
        ("this is not the manifest of a release: ", lambda *_: b"[" * 5000),
        ("this file of release 1 is not signed", lambda mine, *_: mine),
        ("is not a release key of the root of trust", lambda mine, _, folder: signed_by(EVE, mine, folder)),
        ("does not hold; sign its current manifest", lambda _, other, folder: signed_by(ANN, other, folder)),
    ],
    ids=["nothing", "no-json", "deep", "unsigned", "stranger", "another-release"],
)
def test_file_that_approves_nothing_comes_back_with_one_line(
    client: TestClient, store: Store, tmp_path: Path, words: str, make: object
) -> None:
    log_in(client, store, AccessRole.OPERATOR)
    add_release(store)
    mine, other = (client.get(f"{AT}/releases/{number}/to-sign").content for number in (1, 2))
    signed = make(mine, other, tmp_path).decode()  # type: ignore[operator]
    answer = post(client, "releases/1/approve", signed=signed)
    assert answer.status_code == 400
    assert words in told(answer)
    assert "\n" not in told(answer)
    assert f"required>{escape(signed)}</textarea>" in answer.text
    assert "<img" not in answer.text
    with store.reading() as tx:
        assert known_release(tx, 1).signatures == ()
        assert [one.action for one in tx.audit.newest(9) if one.action == "approve release"] == []


def test_largest_release_fits_into_the_form(client: TestClient, store: Store, tmp_path: Path) -> None:
    layers = 24
    submodels = [Submodel((*range(layers),), (16,) * layers, (ffn,) * layers) for ffn in range(4096, 3996, -1)]
    release = add_release(store, exports=[export(f"m{number}", submodel=it) for number, it in enumerate(submodels)])
    log_in(client, store, AccessRole.OPERATOR)
    signed = signed_by(ANN, client.get(f"{AT}/releases/{release}/to-sign").content, tmp_path)
    assert len(signed) > MAX_MESSAGE_BYTES * 0.4
    assert post(client, f"releases/{release}/approve", signed=signed.decode()).status_code == 303


def test_releases_are_listed_newest_first_by_task(client: TestClient, store: Store) -> None:
    add_release(store)
    rolled_out(store)
    log_in(client, store, AccessRole.VIEWER)
    page = shown(client, f"releases?task={TASK}")
    numbers = re.findall(r'<th scope="row"><a href="/dashboard/releases/(\d)"', page)
    assert numbers == ["2", "1"]
    assert "lacks 2 signatures" in page
    assert '/dashboard/rollouts/1"><span class="word">' in page
    assert f"/dashboard/releases?task={TASK}" in shown(client, f"tasks/{TASK}")


def test_release_that_has_expired_says_so_and_is_not_rolled_out(client: TestClient, store: Store) -> None:
    release = add_release(store, now_s=time.time() - 100, days=50 / 86400)
    approved(store, release)
    log_in(client, store, AccessRole.OPERATOR)
    page = shown(client, f"releases/{release}")
    assert ("expired" in page, "new-rollout" in page) == (True, False)
    answer = post(client, f"releases/{release}/rollouts", **TYPED)
    assert (answer.status_code, "release 2 has expired" in told(answer)) == (400, True)


# -- rollouts


def test_rollout_begins_as_it_was_typed(client: TestClient, store: Store) -> None:
    approved(store)
    log_in(client, store, AccessRole.OPERATOR, "olga")
    page = shown(client, "releases/1/new-rollout")
    assert "to 4 devices that can run it" in page
    assert all(f'name="{name}"' in page for name in TYPED)
    answer = post(client, "releases/1/rollouts", **TYPED)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{AT}/rollouts/1")
    with store.reading() as tx:
        known, (entry,) = tx.rollouts.get(1), tx.audit.newest(1)
    assert known is not None
    trial = Trial(seconds=2, min_accuracy=0.5)
    assert known.plan == Plan(
        stages=("50%", "100%"), success_share=0.8, error_share=0.25, health_interval_s=60, trial=trial
    )
    assert (entry.who, entry.action) == ("olga", "start rollout")
    again = post(client, "releases/1/rollouts", **TYPED)
    assert (again.status_code, told(again)) == (400, f"rollout 1 of {TASK} is running: end it first")


def test_form_of_a_rollout_says_what_goes_without_saying(client: TestClient, store: Store) -> None:
    """What the form begins with is a plan, and the same as the one of the command line."""
    approved(store)
    log_in(client, store, AccessRole.OPERATOR)
    page = shown(client, "releases/1/new-rollout")
    usual = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
    assert usual.keys() == TYPED.keys()
    assert post(client, "releases/1/rollouts", **usual).status_code == 303
    with store.reading() as tx:
        known = tx.rollouts.get(1)
    assert known is not None
    assert known.plan == read_plan({"stages": ["10%", "100%"]})


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"stages": ""}, "group '' is not usable"),
        ({"stages": EVIL}, "is not usable in a topic"),
        ({"stages": "nobody"}, "stage 'nobody' has no devices"),
        ({"stages": "50%, 10%"}, "shares have to rise"),
        ({"stages": ",".join(["1%"] * 40)}, "plan: Expected `array` of length <= 32"),
        ({"success": "most"}, "healthy, percent: 'most' is not a number"),
        ({"success": "120"}, "plan: Expected `float` <= 1.0 - at `$.success_share`"),
        ({"error": "nan"}, "plan: Expected `float`"),
        ({"health_interval": "inf"}, "plan: Expected `float` <= 1000000000.0 - at `$.health_interval_s`"),
        ({"health_interval": "1"}, "does not end within the health interval"),
        ({"trial": ""}, "trial, seconds: '' is not a number"),
        ({"min_accuracy": "7"}, "at `$.trial.min_accuracy`"),
    ],
)
def test_rollout_that_cannot_be_comes_back_with_one_line(
    client: TestClient, store: Store, typed: dict[str, str], words: str
) -> None:
    approved(store)
    log_in(client, store, AccessRole.OPERATOR)
    answer = post(client, "releases/1/rollouts", **TYPED | typed)
    assert answer.status_code == 400
    assert words in told(answer)
    assert "\n" not in told(answer)
    assert "<img" not in answer.text
    ((name, value),) = typed.items()
    assert f'name="{name}" value="{escape(value)}"' in answer.text
    with store.reading() as tx:
        assert tx.rollouts.all() == ()


def test_rollout_of_what_nobody_has_signed_is_refused(client: TestClient, store: Store) -> None:
    log_in(client, store, AccessRole.OPERATOR)
    answer = post(client, "releases/1/rollouts", **TYPED)
    assert (answer.status_code, "release 1 is not approved" in told(answer)) == (400, True)


def test_rollout_has_the_buttons_that_its_state_allows(client: TestClient, store: Store) -> None:
    rolled_out(store)
    log_in(client, store, AccessRole.OPERATOR, "olga")
    assert buttons(shown(client, "rollouts/1")) == ["pause", "halt", "rollback"]
    for command, becomes, may in (
        ("pause", RolloutStatus.PAUSED, ["resume", "halt", "rollback"]),
        ("resume", RolloutStatus.RUNNING, ["pause", "halt", "rollback"]),
        ("halt", RolloutStatus.HALTED, ["rollback"]),
        ("rollback", RolloutStatus.ROLLING_BACK, []),
    ):
        answer = post(client, f"rollouts/1/{command}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"{AT}/rollouts/1")
        assert (status_of(store), buttons(shown(client, "rollouts/1"))) == (becomes, may)
    late = post(client, "rollouts/1/pause")
    assert (late.status_code, told(late)) == (400, "cannot pause a rollout that is rolling-back")
    with store.reading() as tx:
        noted = [(one.who, one.action) for one in tx.audit.newest(4)]
    assert noted == [("olga", f"{action} rollout") for action in ("roll back", "halt", "resume", "pause")]


def test_rollout_that_another_has_followed_has_no_buttons(client: TestClient, store: Store) -> None:
    rolled_out(store)
    with store.transaction() as tx:
        tx.rollouts.set_status(1, RolloutStatus.HALTED)
    rolled_out(store, add_release(store))
    log_in(client, store, AccessRole.OPERATOR)
    assert buttons(shown(client, "rollouts/1")) == []
    answer = post(client, "rollouts/1/rollback")
    assert (answer.status_code, told(answer)) == (400, f"rollout 2 of {TASK} has replaced rollout 1")


def test_viewer_sees_no_button_and_is_refused_without_one(client: TestClient, store: Store) -> None:
    rolled_out(store)
    log_in(client, store, AccessRole.VIEWER, "vera")
    assert "<form" not in shown(client, "releases/1").partition("<main")[2]
    assert 'method="post"' not in shown(client, "rollouts/1").partition("<main")[2]
    assert client.get(f"{AT}/releases/1/to-sign").status_code == 200
    refused = [
        client.get(f"{AT}/releases/1/new-rollout"),
        post(client, "releases/1/approve", signed="x"),
        post(client, "releases/1/rollouts", **TYPED),
        *(post(client, f"rollouts/1/{command}") for command in ("pause", "resume", "halt", "rollback")),
    ]
    assert {(answer.status_code, told(answer)) for answer in refused} == {
        (403, "token 'vera' has the role viewer; this needs operator")
    }
    assert status_of(store) is RolloutStatus.RUNNING


def test_other_sites_neither_approve_nor_send_nor_halt(client: TestClient, store: Store, tmp_path: Path) -> None:
    rolled_out(store)
    release = add_release(store)
    log_in(client, store, AccessRole.OPERATOR)
    signed = signed_by(ANN, client.get(f"{AT}/releases/{release}/to-sign").content, tmp_path).decode()
    for headers in FOREIGN:
        answers = [
            post(client, f"releases/{release}/approve", headers, signed=signed),
            post(client, "releases/1/rollouts", headers, **TYPED),
            post(client, "rollouts/1/halt", headers),
        ]
        assert [answer.status_code for answer in answers] == [403] * 3, headers
    with store.reading() as tx:
        assert known_release(tx, release).signatures == ()
    assert status_of(store) is RolloutStatus.RUNNING


@pytest.mark.parametrize("path", ["releases/9/approve", "releases/9/rollouts", "rollouts/9/halt", "rollouts/1/explode"])
def test_what_there_is_not_is_not_changed(client: TestClient, store: Store, path: str) -> None:
    log_in(client, store, AccessRole.OPERATOR)
    answer = post(client, path, **TYPED)
    assert (answer.status_code, bool(told(answer))) == (400 if "explode" in path else 404, True)


def test_why_a_device_went_back_is_shown_and_never_run(client: TestClient, store: Store) -> None:
    rolled_out(store)
    with store.transaction() as tx:
        number = tx.assignments.of_rollout(1)[0].number
        tx.assignments.stands(number, AssignmentStatus.ROLLED_BACK, EVIL, 1.0)
    log_in(client, store, AccessRole.VIEWER)
    for path in ("rollouts/1", "rollouts/1?state=rolled-back", f"running?task={TASK}"):
        page = shown(client, path)
        assert escape(EVIL) in page
        assert "<img" not in page
        assert "<script>" not in page
    assert "No device has this state." in shown(client, "rollouts/1?state=trying")
