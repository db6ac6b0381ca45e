"""Clocks that are wrong by ten years, or jump by as much: deadlines hold, old releases stay out, nothing crashes."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from coordinator.rounds import conductor
from edge_sdk.protocol.messages import Offer, ReleaseReport, UpdateReady
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.security.trust import Trust
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from edge_sdk.transport.mqtt import BrokerAddress
from tests.support.certificate import self_signed
from tests.support.clock import TEN_YEARS_S, jumping, skewed
from tests.support.light_model import light_models, light_task
from tests.support.logistic_graph import examples
from tests.support.lone_device import LoneDevice
from tests.support.proof import Proof
from tests.support.served import Served, quick
from tests.support.simulator import Answer, Fleet, small_update

DEADLINE_S = 1.0
NEWEST = 5
SOME = examples(20, seed=1)
_CONNECT = """
import sys
from pathlib import Path
from edge_sdk.transport.mqtt import BrokerAddress, MqttTransport
MqttTransport(BrokerAddress.parse(sys.argv[1]), "device", (), ca_file=Path(sys.argv[2])).connect()
"""
MAIL = list(zip(SOME.texts, SOME.labels, strict=True))


def seconds_to_decision(folder: Path, patience_s: float, on_offer: Callable[[], object] = lambda: None) -> float:
    """From the first offer of a round to its decision, on a clock that is right; one of its devices is silent."""
    offered_s: list[float] = []

    def work(device: str, offer: Offer, weights: bytes) -> Answer:
        offered_s.append(time.monotonic())
        on_offer()
        return None if device == "silent" else small_update(device, offer, weights)

    hub = MemoryHub()
    task = light_task(folder, rounds=1, min_devices=2, quorum=1, round_deadline_s=DEADLINE_S)
    served = Served(quick(folder), task, MemoryTransport(hub, coordinator_filters("default")))
    fleet = Fleet(("a", "silent"), lambda _, filters, __: MemoryTransport(hub, filters), work=work)
    with light_models(), served, fleet:
        served.wait_until(lambda: offered_s)
        while not served.decided and time.monotonic() < offered_s[0] + patience_s:
            time.sleep(0.01)
    return time.monotonic() - offered_s[0]


@pytest.mark.timeout(600)
def test_deadlines_hold_while_the_wall_clock_jumps(
    tmp_path: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_s = []
    for seed in proof.seeds(short=2, full=30):
        monkeypatch.setattr(time, "time", jumping(seed))
        (folder := tmp_path / str(seed)).mkdir()
        moved_s.append(abs(seconds_to_decision(folder, patience_s=30.0) - DEADLINE_S))
    bar_s = proof.count(short=5, full=1)
    proof.show("R10", "seconds by which jumps of ten years move a deadline", max(moved_s), at_most=bar_s)


def test_deadlines_on_the_wall_clock_would_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a conductor that decides by the wall's time."""
    wrong_by_s = [0.0]
    clocks = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + wrong_by_s[-1])
    monkeypatch.setattr(conductor, "time", clocks)
    took_s = seconds_to_decision(tmp_path, 3 * DEADLINE_S, on_offer=lambda: wrong_by_s.append(-TEN_YEARS_S))
    assert took_s > 2.9 * DEADLINE_S


def releases_installed(device: LoneDevice) -> list[int]:
    reports = [report for report in device.heard(ReleaseReport) if isinstance(report, ReleaseReport)]
    return [report.release for report in reports if report.healthy]


def test_agent_works_and_refuses_older_releases_whatever_its_clock_says(
    tmp_path: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    clocks = [skewed(-TEN_YEARS_S), skewed(TEN_YEARS_S), *map(jumping, proof.seeds(short=1, full=50))]
    monkeypatch.setattr(time, "time", clocks[-1])
    with LoneDevice(tmp_path, MAIL) as device:
        device.release = device.goods.release(NEWEST)
        device.run_until(lambda: NEWEST in releases_installed(device))
        older = [device.goods.release(number, assignment=NEWEST + number) for number in range(1, NEWEST)]
        for clock in clocks:
            monkeypatch.setattr(time, "time", clock)
            for release in older:
                device.send(release)
        refused = len(clocks) * (NEWEST - 1)
        device.run_until(lambda: caplog.text.count("is older than") == refused)
        rolled_back = sum(number < NEWEST for number in releases_installed(device))
    assert device.heard(UpdateReady), "the agent trained meanwhile"
    proof.show("R10", f"rollbacks accepted of {refused} tried at {len(clocks)} clocks", rolled_back, at_most=0)


def test_agent_that_remembers_no_release_would_take_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: it is the number that is kept which holds, and no clock."""
    with LoneDevice(tmp_path, MAIL, releases_first=True) as device:
        device.release = device.goods.release(NEWEST)
        device.run_until(lambda: NEWEST in releases_installed(device))
        monkeypatch.setattr(Trust, "newest", lambda *_: 0)
        device.send(device.goods.release(1, assignment=NEWEST + 1))
        device.run_until(lambda: 1 in releases_installed(device))


@pytest.mark.parametrize("begins_in_days", [-3650, 3650])
def test_certificate_of_another_decade_is_refused_and_the_clock_is_named(tmp_path: Path, begins_in_days: int) -> None:
    """What a device sees whose clock is wrong by ten years: the broker's certificate has expired, or is to come."""
    context, pem = self_signed(tmp_path, begins_in_days=begins_in_days)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = BrokerAddress("127.0.0.1", server.getsockname()[1], tls=True)
        command = [sys.executable, "-c", _CONNECT, str(address), str(pem)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as device:
            connection, _ = server.accept()
            secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            with secured, suppress(OSError):
                secured.do_handshake()
            _, said = device.communicate()
    assert "set this machine's clock, which says" in said
