"""Who asks too often waits, who guesses waits longer, and no number of addresses makes the server remember more."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from coordinator.api.access import make_token
from coordinator.api.app import create_app
from coordinator.api.limiting import Limiter, Limits, client_of
from coordinator.dashboard.app import add_dashboard
from coordinator.store.database import Store
from coordinator.store.states import AccessRole
from edge_sdk.errors import ConfigurationError
from tests.support.secured import new_fleet

OWN = {"sec-fetch-site": "same-origin"}
WRONG = {"Authorization": "Bearer raffm_wrong"}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# -- the bucket


def test_minutes_worth_at_once_and_then_one_as_each_comes_in() -> None:
    clock = Clock()
    limiter = Limiter(6, clock=clock)
    assert [limiter.take_s("a") for _ in range(7)] == [0, 0, 0, 0, 0, 0, pytest.approx(10)]
    assert limiter.take_s("b") == 0
    clock.now_s += 4
    assert limiter.wait_s("a") == pytest.approx(6)
    clock.now_s += 6.001
    assert limiter.take_s("a") == 0
    assert limiter.take_s("a") == pytest.approx(10, abs=0.01)
    clock.now_s += 60
    assert [limiter.take_s("a") for _ in range(6)] == [0] * 6


def test_no_limit_is_none() -> None:
    limiter = Limiter(0)
    assert not any(limiter.take_s("a") for _ in range(10_000))
    assert len(limiter) == 0
    with pytest.raises(ConfigurationError, match="cannot be negative"):
        Limits(failures_per_minute=-1)


def test_addresses_without_end_take_bounded_memory_and_get_no_more() -> None:
    clock = Clock()
    limiter = Limiter(10, most=1000, clock=clock)
    tracemalloc.start()
    try:
        let_in = sum(
            limiter.take_s(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}") == 0 for number in range(100_000)
        )
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(limiter) <= 1001
    assert let_in == 1000 + 10, "one each while there is room, and ten of everybody else"
    assert limiter.take_s("192.0.2.1") > 0
    assert limiter.take_s("10.0.0.1") == 0, "who was known before has a bucket of its own"
    clock.now_s += 120
    assert limiter.take_s("192.0.2.1") == 0
    assert len(limiter) == 1


def test_table_of_a_server_holds_ten_thousand() -> None:
    limiter = Limiter(1)
    for number in range(30_000):
        limiter.count(str(number))
    assert len(limiter) == 10_001


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
    ],
)
def test_customer_s_network_is_one_client(host: str, client: str) -> None:
    assert client_of({"client": (host, 1)}) == client
    assert client_of({"client": None}) == "unknown"


# -- the server


Opening = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture
def serving(store: Store, tmp_path: Path) -> Opening:
    @contextmanager
    def opened(host: str = "192.0.2.1", app: object = None, **limits: int) -> Iterator[TestClient]:
        if app is None:
            app = create_app(store, tmp_path, Limits(**limits))
            add_dashboard(app, store, tmp_path)
        with TestClient(app, client=(host, 5000), raise_server_exceptions=False, follow_redirects=False) as client:
            yield client

    return opened


def header(store: Store, name: str = "ann") -> dict[str, str]:
    return {"Authorization": f"Bearer {make_token(store, name, AccessRole.VIEWER, None, time.time(), 'a test')}"}


def test_client_that_asks_too_often_is_told_for_how_long_to_wait(serving: Opening) -> None:
    with serving(requests_per_minute=5) as client:
        assert [client.get("/health").status_code for _ in range(6)] == [200] * 5 + [429]
        answer = client.get("/dashboard/login")
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert answer.json() == {"error": f"too many requests: try again in {answer.headers['retry-after']} s"}
        with serving("192.0.2.2", client.app) as other:
            assert other.get("/health").status_code == 200


def test_token_that_asks_too_often_waits_wherever_it_asks_from(serving: Opening, store: Store) -> None:
    mine, hers = header(store), header(store, "eve")
    with serving(requests_per_minute=5) as first, serving("192.0.2.2", first.app) as second:
        assert [first.get("/api/v1/tasks", headers=mine).status_code for _ in range(4)] == [200] * 4
        assert [second.get("/api/v1/tasks", headers=mine).status_code for _ in range(2)] == [200, 429]
        assert (
            second.get("/api/v1/tasks", headers=mine).json()["error"].startswith("too many requests with token 'ann'")
        )
        assert second.get("/api/v1/tasks", headers=hers).status_code == 200


def test_request_counts_once_whatever_it_needs(serving: Opening, store: Store) -> None:
    mine = header(store)
    with serving(requests_per_minute=3) as client:
        assert [client.post("/api/v1/tasks/x/stop", headers=mine).status_code for _ in range(4)] == [403, 403, 403, 429]


def test_guesses_end_also_where_the_last_one_would_be_right(serving: Opening, store: Store) -> None:
    mine = header(store)
    with serving(failures_per_minute=3) as client:
        wrong = [{"Authorization": f"Bearer raffm_{number}"} for number in range(4)]
        assert [client.get("/api/v1/tasks", headers=each).status_code for each in wrong] == [401, 401, 401, 429]
        right = client.get("/api/v1/tasks", headers=mine)
        assert (right.status_code, right.json()["error"][:21]) == (429, "too many wrong tokens")
        assert int(right.headers["retry-after"]) >= 1
        with serving("192.0.2.2", client.app) as other:
            assert other.get("/api/v1/tasks", headers=mine).status_code == 200


def test_secret_that_is_wrong_is_looked_at_no_more_from_anywhere(serving: Opening) -> None:
    with serving(failures_per_minute=2) as client:
        codes = []
        for number in range(4):
            with serving(f"192.0.2.{number}", client.app) as other:
                codes.append(other.get("/api/v1/tasks", headers=WRONG).status_code)
    assert codes == [401, 401, 429, 429]


def test_without_the_limit_guesses_have_no_end(serving: Opening) -> None:
    """The control."""
    with serving(failures_per_minute=0) as client:
        assert {client.get("/api/v1/tasks", headers=WRONG).status_code for _ in range(50)} == {401}


def test_guesses_at_the_log_in_are_counted_with_the_others(serving: Opening, store: Store) -> None:
    secret = header(store)["Authorization"].removeprefix("Bearer ")
    with serving(failures_per_minute=3) as client:
        assert client.get("/api/v1/tasks", headers=WRONG).status_code == 401
        for number, code in ((0, 401), (1, 401), (2, 429)):
            answer = client.post("/dashboard/login", data={"token": f"raffm_{number}"}, headers=OWN)
            assert answer.status_code == code
        assert "too many wrong tokens: try again in" in answer.text
        assert int(answer.headers["retry-after"]) >= 1
        assert client.post("/dashboard/login", data={"token": secret}, headers=OWN).status_code == 429
        with serving("192.0.2.2", client.app) as other:
            assert other.post("/dashboard/login", data={"token": secret}, headers=OWN).status_code == 303


def test_guesses_at_enrolling_are_counted_with_the_others(
    serving: Opening, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new_fleet(tmp_path)
    body = b'{"device": "pi-5", "request": "none"}'
    with serving(failures_per_minute=2) as client:
        codes = [client.post("/enroll", content=body, headers=WRONG).status_code for _ in range(3)]
        assert codes == [401, 401, 429]
        assert client.get("/api/v1/tasks", headers=WRONG).status_code == 429
    assert "192.0.2.1 sent a token that is unknown, revoked or expired" in caplog.text
    assert "raffm_wrong" not in caplog.text


def test_every_operation_says_that_it_may_ask_to_wait(serving: Opening) -> None:
    with serving() as client:
        paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert "Retry-After" in operation["responses"]["429"]["headers"], f"{method} {path}"
