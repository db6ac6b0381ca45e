"""R3: a receipt is sent only once the update is on the disk: its blob, and the transaction that says so."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from coordinator.store.opening import open_store
from tests.support.broker import Broker
from tests.support.proof import Proof
from tests.support.traced import TASK, Order, order_in, traced_run

DEVICES = 10


def order_of(folder: Path, broker: Broker, rounds: int, control: str = "") -> Order:
    trace = traced_run(folder, broker, devices=DEVICES, rounds=rounds, control=control)
    with closing(open_store(folder)) as store, store.reading() as tx:
        updates = [update for number in range(1, rounds + 1) for update in tx.updates.of_round(TASK, number)]
    return order_in(trace, {update.update_id: update.digest for update in updates})


@pytest.mark.timeout(600)
def test_receipt_follows_the_sync_of_its_update(embedded_broker: Broker, tmp_path: Path, proof: Proof) -> None:
    rounds = proof.count(short=2, full=100)
    found = order_of(tmp_path / "coordinator", embedded_broker, rounds)
    assert found.receipts == DEVICES * rounds
    what = f"of {found.receipts} receipts, sent before the sync of their"
    proof.show("R3", f"{what} commit", found.before_commit, at_most=0)
    proof.show("R3", f"{what} blob", found.before_blob, at_most=0)


@pytest.mark.long
def test_receipt_without_any_sync_is_found(embedded_broker: Broker, tmp_path: Path) -> None:
    """The control: a store that leaves it to the kernel when bytes get to the disk."""
    found = order_of(tmp_path / "coordinator", embedded_broker, 1, control="no_sync")
    assert (found.receipts, found.before_commit) == (DEVICES, DEVICES)
