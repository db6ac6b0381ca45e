"""What a running agent tells systemd, on a real socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.agent.decisions import Phase
from edge_sdk.agent.supervisor import AgentStatus
from edge_sdk.service.notify import Notifier, in_words

UP = AgentStatus(connected=True)
TRAINING = AgentStatus(phase=Phase.TRAINING, connected=True, task="news", round=3, step=2, steps=9)


class Manager:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        lines: list[str] = []
        try:
            while True:
                lines += self._socket.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines

    def close(self) -> None:
        self._socket.close()


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    running = Manager(f"@raffm-edge-{tmp_path.name}" if request.param == "abstract" else str(tmp_path / "notify"))
    yield running
    running.close()


def test_ready_is_said_once_and_not_before_the_broker_answers(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.tick(AgentStatus())
    assert "READY=1" not in manager.heard()
    notifier.tick(UP)
    assert manager.heard() == ["READY=1", "STATUS=waiting for work"]
    notifier.tick(AgentStatus())
    notifier.tick(UP)
    assert "READY=1" not in manager.heard()


def test_pings_come_four_times_in_the_watchdogs_time_and_not_more(manager: Manager) -> None:
    clock = Clock()
    notifier = Notifier(manager.address, 120, now_s=clock)
    pings = 0
    for _ in range(240):
        notifier.tick(UP)
        clock.now_s += 0.5
        pings += manager.heard().count("WATCHDOG=1")
    assert pings == 4


def test_without_a_watchdog_nothing_is_pinged(manager: Manager) -> None:
    Notifier.of({"NOTIFY_SOCKET": manager.address}).tick(UP)
    assert "WATCHDOG=1" not in manager.heard()


def test_environment_of_a_service_says_where_and_how_often(manager: Manager) -> None:
    Notifier.of({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "120000000"}).tick(UP)
    assert manager.heard() == ["READY=1", "WATCHDOG=1", "STATUS=waiting for work"]


def test_status_is_said_when_it_changes(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.tick(UP)
    manager.heard()
    notifier.tick(UP)
    assert manager.heard() == []
    notifier.tick(TRAINING)
    assert manager.heard() == ["STATUS=training, round 3 of news, step 2 of 9"]


def test_end_is_said(manager: Manager) -> None:
    Notifier(manager.address).stopping()
    assert manager.heard() == ["STOPPING=1", "STATUS=stopping"]


def test_nobody_asked_and_nothing_is_sent() -> None:
    notifier = Notifier.of({})
    notifier.tick(UP)
    notifier.stopping()


def test_manager_that_is_gone_is_logged_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Notifier(str(tmp_path / "gone")).tick(UP)
    assert "gone cannot be reached" in caplog.text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (AgentStatus(), "the connection to the broker is lost; reconnecting"),
        (AgentStatus(connected=True, waiting_for="battery at 5%"), "not training: battery at 5%"),
        (
            AgentStatus(connected=True, phase=Phase.FETCHING, task="news", round=1, step=9, steps=9),
            "fetching, round 1 of news",
        ),
    ],
)
def test_status_in_words(status: AgentStatus, words: str) -> None:
    assert in_words(status) == words
