"""R9: a coordinator whose disk refuses says so by name, gives no receipt for what it could not keep, and recovers."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from edge_sdk.errors import StorageError
from tests.support.broker import Broker
from tests.support.crash import Crash
from tests.support.kill_case import KillCase
from tests.support.proof import Proof

LEAST_BYTES = 8 << 10


def largest_file_bytes(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_sound(database: Path) -> bool:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.timeout(600)
def test_coordinator_without_space_keeps_what_it_promised(
    embedded_broker: Broker, tmp_path: Path, proof: Proof
) -> None:
    """No file may grow beyond a size, drawn between hardly any and enough: what is then refused is drawn with it."""
    with closing(KillCase(tmp_path / "whole", embedded_broker)) as case:
        whole = case.run()
        enough_bytes = largest_file_bytes(tmp_path / "whole")  # before the log of the store is folded into it
    corrupt = unnamed = ended = wrong = others = 0
    for seed in proof.seeds(short=3, full=100):
        limit_bytes = random.Random(seed).randrange(LEAST_BYTES, enough_bytes)
        folder = tmp_path / f"case-{seed}"
        with closing(KillCase(folder, embedded_broker)) as case:
            found = case.run(file_limit_bytes=limit_bytes)
        ended += found.is_killed
        unnamed += found.is_killed and found.exit_code != StorageError.exit_code
        corrupt += not is_sound(folder / "coordinator.sqlite")
        wrong += not found.judgement.holds
        others += found.digest != whole.digest
        print(limit_bytes, found.is_killed, found.exit_code, (folder / "log").read_text().splitlines()[:2])
    proof.show("R9", "stores that are not sound after files could not grow", corrupt, at_most=0)
    proof.show("R9", f"coordinators of {ended} that ended without a named error", unnamed, at_most=0)
    proof.show("R9", "fleets whose history is wrong once there is space again", wrong, at_most=0)
    proof.show("R9", "final models of other bytes once there is space again", others, at_most=0)


@pytest.mark.timeout(600)
def test_disk_that_refuses_once_costs_nothing(embedded_broker: Broker, tmp_path: Path, proof: Proof) -> None:
    """Wherever something is made durable: in the loop, which ends by name, or in the work beside it, done again."""
    with closing(KillCase(tmp_path / "whole", embedded_broker)) as case:
        whole = case.run()
    passed = Counter(point for point in whole.passed if point in {"fsync", "rename"})
    refusals = [Crash(point, nth, is_error=True) for point in passed for nth in range(1, passed[point] + 1)]
    chosen = random.Random(proof.seed).sample(refusals, proof.count(short=4, full=len(refusals)))
    unnamed = wrong = others = 0
    for number, refusal in enumerate(chosen):
        with closing(KillCase(tmp_path / f"case-{number}", embedded_broker)) as case:
            found = case.run(refusal)
        print(refusal, found.is_killed, found.exit_code)
        unnamed += found.is_killed and found.exit_code != StorageError.exit_code
        wrong += not found.judgement.holds
        others += found.digest != whole.digest
    proof.show(
        "R9", "coordinators that ended without a named error, of single refusals by the disk", unnamed, at_most=0
    )
    proof.show("R9", f"fleets whose history is wrong, of {len(chosen)} single refusals by the disk", wrong, at_most=0)
    proof.show("R9", "final models of other bytes, of single refusals by the disk", others, at_most=0)


@pytest.mark.long
def test_receipt_on_a_disk_that_refuses_is_found(embedded_broker: Broker, tmp_path: Path, proof: Proof) -> None:
    """The control: a coordinator that says what it has not kept loses an update here."""
    with closing(KillCase(tmp_path / "whole", embedded_broker)) as case:
        first_bytes = largest_file_bytes(tmp_path / "whole")
        case.run()
        enough_bytes = largest_file_bytes(tmp_path / "whole")
    hasty = {"control": "receipt_before_commit", "quorum": 2, "round_deadline_s": 2.0}
    for seed in range(proof.seed, proof.seed + 40):
        limit_bytes = random.Random(seed).randrange(first_bytes, enough_bytes)  # while updates come in
        with closing(KillCase(tmp_path / f"case-{seed}", embedded_broker, **hasty)) as case:
            if case.run(file_limit_bytes=limit_bytes).judgement.lost:
                return
    pytest.fail("no update was lost")
