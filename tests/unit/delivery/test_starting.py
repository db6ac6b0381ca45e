"""When a task's next rollout may begin: while one that goes back waits for devices that are there, not for others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.delivery.approving import approve, known_release, signatures_by
from coordinator.delivery.rollout import Command
from coordinator.delivery.starting import command_rollout, start_rollout
from coordinator.store.database import Store, Transaction
from coordinator.store.plan import Plan
from coordinator.store.states import AssignmentStatus
from edge_sdk.errors import ConfigurationError
from tests.support.waiting_release import ANN, BOB, add_release, open_with_release


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Rollout 1 goes back: of its four devices one is back, one was never told."""
    store = open_with_release(tmp_path)
    add_release(store)
    with store.transaction() as tx:
        for number in (1, 2):
            approve(tx, number, signatures_by(known_release(tx, number), [ANN, BOB]), 1.0, "a test")
        rollout = start_rollout(tx, 1, Plan(), time.time(), "a test").rollout
        by_device = {assigned.device: assigned.number for assigned in tx.assignments.of_rollout(rollout)}
        for device, status in (
            ("d0", AssignmentStatus.ROLLED_BACK),
            ("d1", AssignmentStatus.HEALTHY),
            ("d2", AssignmentStatus.FAILED),
        ):
            tx.assignments.stands(by_device[device], status, "", 2.0)
        command_rollout(tx, rollout, Command.ROLLBACK, 3.0, "a test")
    yield store
    store.close()


def test_device_that_is_there_is_waited_for(store: Store) -> None:
    with store.transaction() as tx, pytest.raises(ConfigurationError) as raised:
        start_rollout(tx, 2, Plan(), time.time(), "a test")
    assert str(raised.value) == "rollout 1 of news is rolling-back: wait until d1 has answered"


@pytest.mark.parametrize(
    "leave",
    [lambda tx: tx.devices.revoke("d1", 4.0), lambda tx: tx.devices.offline("d1", 1)],
    ids=["revoked", "offline"],
)
def test_device_that_will_not_answer_holds_up_no_rollout(store: Store, leave: Callable[[Transaction], object]) -> None:
    with store.transaction() as tx:
        leave(tx)
        assert start_rollout(tx, 2, Plan(), time.time(), "a test").rollout == 2
