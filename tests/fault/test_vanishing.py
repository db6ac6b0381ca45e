"""Devices that fall silent in the middle of a round: deadline and quorum decide it, and nobody waits for the dead."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from coordinator.store.states import Phase
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.light_model import light_models, light_task
from tests.support.proof import Proof
from tests.support.served import Served, quick
from tests.support.simulator import Answer, Fleet, Work, small_update

DEVICES = tuple(f"device-{number}" for number in range(10))
SILENT = 3  # 30 %
DEADLINE_S = 1.0


def often_silent(seed: int, silent: int = SILENT) -> Work:
    """In every round another ``silent`` devices take their offer and do not answer it."""

    def work(device: str, offer: Offer, weights: bytes) -> Answer:
        gone = random.Random(f"{seed} {offer.round}").sample(DEVICES, silent)
        return None if device in gone else small_update(device, offer, weights)

    return work


def served(folder: Path, hub: MemoryHub, rounds: int, *, deadline_s: float = DEADLINE_S, quorum: int = 1) -> Served:
    task = light_task(folder, rounds=rounds, min_devices=len(DEVICES), quorum=quorum, round_deadline_s=deadline_s)
    return Served(quick(folder), task, MemoryTransport(hub, coordinator_filters("default")))


def fleet(hub: MemoryHub, work: Work) -> Fleet:
    return Fleet(DEVICES, lambda _, filters, will: MemoryTransport(hub, filters, will=will), work=work)


@pytest.mark.timeout(1200)
def test_rounds_are_decided_at_their_deadline_with_whoever_has_answered(tmp_path: Path, proof: Proof) -> None:
    hub, rounds = MemoryHub(), proof.count(short=3, full=100)
    with light_models(), served(tmp_path, hub, rounds) as coordinator, fleet(hub, often_silent(proof.seed)):
        coordinator.wait_for_end(rounds * (DEADLINE_S + 5))
        decided = coordinator.decided
    late_s = sorted((known.closed_s or 0.0) - known.deadline_s for known in decided)
    bar_s = proof.count(short=5, full=1)  # the short form runs beside much else
    proof.show("R7", f"of {rounds} rounds that lose 30 % of 10 devices, undecided", rounds - len(decided), at_most=0)
    proof.show("R7", "seconds past the deadline, 99th percentile", late_s[int(0.99 * len(late_s))], at_most=bar_s)


def test_rounds_without_a_quorum_are_abandoned_at_their_deadline_and_the_task_fails(tmp_path: Path) -> None:
    hub = MemoryHub()
    work = often_silent(0, silent=6)
    with light_models(), served(tmp_path, hub, 1, deadline_s=0.2, quorum=5) as coordinator, fleet(hub, work):
        coordinator.wait_for_end()
        assert {known.phase for known in coordinator.decided} == {Phase.ABANDONED}
        assert coordinator.status.value == "failed"


def test_round_without_a_deadline_waits_for_the_dead(tmp_path: Path) -> None:
    """The control: it is the deadline that decides."""
    hub = MemoryHub()
    with light_models(), served(tmp_path, hub, 1, deadline_s=3600.0) as coordinator, fleet(hub, often_silent(0)):
        coordinator.wait_until(lambda: len(coordinator.accepted) == len(DEVICES) - SILENT)
        time.sleep(1.5 * DEADLINE_S)
        assert not coordinator.decided
