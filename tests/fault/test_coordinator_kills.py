"""R1: a coordinator killed at any instant loses no update, counts none twice, and comes to the same model."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from edge_sdk.protocol.topics import Topic
from edge_sdk.transport.base import Incoming
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import Broker, iotcore_broker
from tests.support.crash import Crash
from tests.support.kill_case import KillCase, Outcome
from tests.support.proof import Proof

pytestmark = pytest.mark.xdist_group("coordinator kills")  # they share what nobody disturbed

AGAIN_S = 5.0
HASTY = {"quorum": 2, "round_deadline_s": 2.0}  # so that a round ends without the device whose update is lost
COMMIT = "commit offers+updates"


class Cases:
    """Cases on one broker: each is a fleet of its own, so that nothing retained reaches the next."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self._folder, self._broker, self._numbers = folder, broker, count()
        self.first = self.run()  # the first one waits for imports
        self.whole = self.run()

    def run(self, crash: Crash | None = None, kill_after_s: float | None = None, **settings: object) -> Outcome:
        with closing(KillCase(self._folder / f"case-{next(self._numbers)}", self._broker, **settings)) as case:
            return case.run(crash, kill_after_s)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    """With the outcomes of two that nobody disturbed."""
    with iotcore_broker() as broker:
        yield Cases(tmp_path_factory.mktemp("kills"), broker)


def show(proof: Proof, cases: Cases, when: str, outcomes: list[Outcome]) -> None:
    """The figures of R1."""
    assert cases.whole.judgement.holds, cases.whole
    assert cases.whole.digest == cases.first.digest
    killed = [outcome for outcome in outcomes if outcome.is_killed]
    judgements = [outcome.judgement for outcome in killed]
    assert len(killed) >= len(outcomes) / 2, "most coordinators have to be killed before they are done"
    proof.show("R1", f"updates lost, coordinator killed {when}", sum(len(it.lost) for it in judgements), at_most=0)
    proof.show("R1", f"updates counted twice, killed {when}", sum(len(it.double) for it in judgements), at_most=0)
    unanswered = sum(len(it.open) + len(it.strange) for it in judgements)
    proof.show("R1", f"updates without an answer or of no device, killed {when}", unanswered, at_most=0)
    others = sum(outcome.digest != cases.whole.digest for outcome in killed)
    proof.show("R1", f"final models of other bytes, killed {when}", others, at_most=0)
    slowest_s = max(outcome.again_s for outcome in killed)
    proof.show("R1", f"seconds until it speaks again, imports apart, killed {when}", slowest_s, at_most=AGAIN_S)


@pytest.mark.timeout(1200)
def test_coordinator_killed_at_random_instants_comes_to_the_same_model(cases: Cases, proof: Proof) -> None:
    outcomes = list[Outcome]()
    for seed in proof.seeds(short=2, full=100):
        instants, outcome = random.Random(seed), None
        while outcome is None or not outcome.is_killed:  # it may be done before
            outcome = cases.run(kill_after_s=instants.uniform(0, cases.whole.seconds))
        outcomes.append(outcome)
    show(proof, cases, f"at {len(outcomes)} random instants", outcomes)


@pytest.mark.timeout(600)
def test_coordinator_killed_around_commit_points_comes_to_the_same_model(cases: Cases, proof: Proof) -> None:
    points = [
        Crash(point, nth, is_after)
        for point in sorted({*cases.whole.passed})
        for nth in (1, max(2, cases.whole.passed.count(point) // 2))
        for is_after in (False, True)
        if nth <= cases.whole.passed.count(point)
    ]
    assert Crash(COMMIT) in points
    chosen = points if proof.is_full else random.Random(proof.seed).sample(points, 3)
    print(*chosen, sep="\n")
    show(proof, cases, f"around {len(chosen)} commit points", [cases.run(crash) for crash in chosen])


@pytest.mark.long  # a bar in seconds is for a machine that does nothing else
def test_coordinator_killed_is_announced_again_within_seconds(
    embedded_broker: Broker, tmp_path: Path, proof: Proof
) -> None:
    """As a user starts it, imports included; with a task to go on with, its model is loaded beside that."""
    serve = (sys.executable, "-m", "coordinator.cli", "serve", "--state-dir", str(tmp_path))
    link = MqttTransport(embedded_broker.address, "device", (str(Topic("default")),))
    link.connect()
    slowest_s = 0.0
    for _ in range(proof.count(short=1, full=10)):
        with (tmp_path / "log").open("ab") as log:
            started_s = time.monotonic()
            process = subprocess.Popen((*serve, "--broker", str(embedded_broker.address)), stderr=log)
        while not isinstance(link.receive(1.0), Incoming):
            assert time.monotonic() - started_s < 60, (tmp_path / "log").read_text()
        slowest_s = max(slowest_s, time.monotonic() - started_s)
        process.kill()
        process.wait()
    link.close()
    proof.show("R1", "seconds from the start of a killed coordinator to its announcement", slowest_s, at_most=AGAIN_S)


def test_receipt_before_its_commit_loses_an_update(cases: Cases) -> None:
    """The control: it is the order of commit and receipt that saves the update."""
    found = cases.run(Crash(COMMIT), control="receipt_before_commit", **HASTY).judgement
    assert found.lost


def test_update_that_is_said_once_goes_unanswered(cases: Cases) -> None:
    """The control: it is the outbox that brings the update again."""
    found = cases.run(Crash(COMMIT), resends=False, **HASTY).judgement
    assert found.open
