"""A real PostgreSQL goes away and comes back beneath a store, a coordinator and an API."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from coordinator.api.access import make_token
from coordinator.api.app import create_app
from coordinator.config import CoordinatorConfig
from coordinator.service import Service
from coordinator.store.database import Store
from coordinator.store.states import AccessRole
from edge_sdk.errors import StorageError, StoreAwayError
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.postgres import PostgresServer, emptied, restartable_postgres

AWAY_S = 0.7
_PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def machine() -> Iterator[PostgresServer]:
    with restartable_postgres() as server:
        yield server


@pytest.fixture
def server(machine: PostgresServer) -> PostgresServer:
    if not machine.is_running:  # a test before has failed
        machine.start()
    emptied(machine.address)
    return machine


@contextmanager
def away(server: PostgresServer, seconds: float = AWAY_S) -> Iterator[None]:
    """It is gone within the block, and comes back by itself after ``seconds``."""
    server.stop()
    back = threading.Timer(seconds, server.start)
    back.start()
    try:
        yield
    finally:
        back.join()


def opened(server: PostgresServer, patience_s: float = _PATIENCE_S) -> closing[Store]:
    return closing(Store(server.address, patience_s=patience_s))


def test_transaction_waits_for_a_server_that_is_away(server: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coordinator.store")
    with opened(server) as store:
        with away(server), store.transaction() as tx:
            tx.tasks.add("news", b"", 1.0)
        with away(server), store.reading() as tx:
            assert [task.name for task in tx.tasks.all()] == ["news"]
    said = [record.message for record in caplog.records]
    assert len(said) == 4, said
    assert "does not answer" in said[0], said
    assert "waiting for up to 20 s" in said[0], said
    assert "answers again, after" in said[1], said


def test_store_opens_once_its_server_has_started(server: PostgresServer) -> None:
    with away(server), opened(server) as store, store.reading() as tx:
        assert tx.tasks.all() == ()


def test_threads_that_wait_say_so_once(server: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coordinator.store")

    def count(store: Store, name: str) -> None:
        with store.transaction() as tx:
            tx.tasks.add(name, b"", 1.0)

    with opened(server) as store:
        threads = [threading.Thread(target=count, args=(store, f"task-{number}")) for number in range(8)]
        with away(server):
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
        with store.reading() as tx:
            assert len(tx.tasks.all()) == 8
    assert len(caplog.records) == 2, caplog.text


def test_transaction_that_breaks_is_not_begun_again(server: PostgresServer) -> None:
    begun = 0
    with opened(server) as store:
        with pytest.raises(StorageError) as caught, store.transaction() as tx:  # noqa: PT012 - the commit raises
            begun += 1
            tx.tasks.add("news", b"", 1.0)
            server.stop()
            server.start()
        assert not isinstance(caught.value, StoreAwayError)
        assert begun == 1
        with store.transaction() as tx:
            assert tx.tasks.all() == ()


def test_server_that_does_not_come_back_is_said_in_one_line(server: PostgresServer) -> None:
    with opened(server, patience_s=AWAY_S) as store:
        server.stop()
        began_s = time.monotonic()
        with pytest.raises(StoreAwayError, match=r"has not answered for 1 s .*check its server") as caught:
            store.revision()
        assert AWAY_S <= time.monotonic() - began_s < AWAY_S + 5
        assert caught.value.exit_code == 6
        began_s = time.monotonic()
        with pytest.raises(StoreAwayError):
            store.revision()
        assert time.monotonic() - began_s < AWAY_S, "the next one does not wait again"
        server.start()
        store.revision()


def test_server_that_is_there_and_refuses_is_not_waited_for(server: PostgresServer) -> None:
    began_s = time.monotonic()
    with pytest.raises(StorageError, match=r"refuses.*nobody"):
        Store(server.address.replace("postgres@", "nobody@"), patience_s=_PATIENCE_S)
    assert time.monotonic() - began_s < _PATIENCE_S / 2


def test_coordinator_serves_on_after_a_restart_of_its_database(server: PostgresServer, tmp_path: Path) -> None:
    with opened(server) as store:
        service, thread, link = started(store, tmp_path)
        link.hold()
        with away(server, 2.0):
            link.go_on.set()
            time.sleep(1.0)  # its ticks are half a second apart
            assert thread.is_alive()
        time.sleep(1.0)
        assert thread.is_alive()
        service.stop()
        thread.join(_PATIENCE_S)
        assert not thread.is_alive()


def test_coordinator_that_waits_can_be_stopped(server: PostgresServer, tmp_path: Path) -> None:
    with opened(server) as store:
        service, thread, link = started(store, tmp_path)
        link.hold()
        server.stop()
        try:
            link.go_on.set()
            time.sleep(1.0)
            service.stop()
            thread.join(_PATIENCE_S / 2)
            assert not thread.is_alive()
        finally:
            server.start()


class HeldLink(MemoryTransport):
    """Keeps who receives waiting, so that no transaction has begun when the server ends: that would end the service."""

    def __init__(self, fleet: str) -> None:
        super().__init__(MemoryHub(), coordinator_filters(fleet))
        self.go_on, self._is_held = threading.Event(), threading.Event()
        self.go_on.set()

    def hold(self) -> None:
        """Returns once the service waits."""
        self.go_on.clear()
        assert self._is_held.wait(_PATIENCE_S)

    def receive(self, timeout_s: float) -> object:
        if not self.go_on.is_set():
            self._is_held.set()
            self.go_on.wait()
        return super().receive(timeout_s)


def started(store: Store, state_dir: Path) -> tuple[Service, threading.Thread, HeldLink]:
    config = CoordinatorConfig(state_dir=state_dir, broker="mqtt://127.0.0.1:1883")
    link = HeldLink(config.fleet)
    service = Service(config, store, link)
    thread = threading.Thread(target=service.run)
    thread.start()
    return service, thread, link


def test_request_is_told_when_to_ask_again(server: PostgresServer) -> None:
    with opened(server, patience_s=0.3) as store:
        secret = make_token(store, "viewer", AccessRole.VIEWER, 1, time.time(), "test")
        with TestClient(create_app(store), headers={"Authorization": f"Bearer {secret}"}) as client:
            assert client.get("/api/v1/tasks").status_code == 200
            server.stop()
            try:
                answer = client.get("/api/v1/tasks")
            finally:
                server.start()
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), answer.text
            assert "has not answered" in answer.json()["error"]
            assert client.get("/api/v1/tasks").status_code == 200
