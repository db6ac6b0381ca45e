"""S7: an update that is wrong in any way is refused by name, and no update makes the global model infinite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.aggregation.admission import Limits, admit_file
from coordinator.aggregation.coverage import UpdateSource, advance
from coordinator.aggregation.server_optimizer import OptimizerKind, ServerOptimizer
from coordinator.config import CoordinatorConfig
from coordinator.models.versions import ModelVersion
from coordinator.resources import Resources
from coordinator.rounds import intake
from coordinator.rounds.intake import Intake
from coordinator.rounds.machine import RoundState
from coordinator.store.database import Store
from coordinator.store.records import OfferRecord, RoundRecord
from coordinator.store.states import Phase
from edge_sdk.elastic.slicing import Region, extract
from edge_sdk.elastic.submodel import uniform
from edge_sdk.errors import TensorTableError
from edge_sdk.protocol.messages import CoordinatorMessage, Receipt, Refusal, UpdateReady, Verdict
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.bert import TINY, slices, weights
from tests.support.hostile_updates import ENCODINGS, HOSTILE, Harm, Update, hostile_to, right
from tests.support.memory import memory_folder
from tests.support.proof import Proof

TASK, BASE_VERSION = "news", "b" * 64
SUBMODEL = uniform(TINY, 2)
CUT = slices(SUBMODEL, TINY)
BASE = weights(TINY, seed=0)
_STATE = RoundState(TASK, 1, BASE_VERSION, 1, 1e9)


class Desk:
    """A real intake, store and folder of blobs around one round, for updates in ``encoding``."""

    def __init__(self, folder: Path, encoding: Any) -> None:
        self.store, self.blobs = Store("sqlite://"), BlobFolder(folder / "blobs")
        self.sent: list[tuple[str, CoordinatorMessage]] = []
        self.encoding, self.devices = encoding, 0
        run = SimpleNamespace(
            config=SimpleNamespace(name=TASK, offered_encoding=encoding, admission=Limits()),
            trained_slices=lambda _: CUT,
        )
        resources = Resources(
            settings=CoordinatorConfig(state_dir=folder, broker=""),
            store=self.store,
            blobs=self.blobs,
            key=Ed25519PrivateKey.generate(),
            send=lambda device, message: self.sent.append((device, message)),
            fetch=lambda *_: None,
            cancel=lambda _: None,
            submit=lambda *_: None,
            sweep=lambda: None,
        )
        self.intake = Intake(run, resources)  # type: ignore[arg-type]
        self._base = ModelVersion(0, BASE_VERSION, BASE, None, ())  # type: ignore[arg-type]
        with self.store.transaction() as tx:
            tx.tasks.add(TASK, b"", 0.0)
            tx.rounds.add(RoundRecord(TASK, 1, BASE_VERSION, Phase.COLLECTING, 1, 0.0, 1e9))

    def receipt(self, harm: Harm, chance: Random) -> tuple[UpdateReady, Receipt]:
        """What a new device gets for an update to which ``harm`` was done."""
        deltas = {name: np.float32(0.01) * values for name, values in extract(BASE, CUT).items()}
        update = Update(self._asked(), TASK, 1, BASE_VERSION, self.encoding, deltas)
        file, message = harm(update, chance)
        self.intake.announced(update.device, message, _STATE)
        if self.sent:
            _, answer = self.sent.pop()
        else:
            assert self.blobs.put_bytes(file) == message.update.digest
            arrived = self.intake.arrived(update.device, message.update.digest)
            assert arrived == message
            with self.store.transaction() as tx:
                answer, _ = self.intake.judge(tx, update.device, message, self._base, 1)
        assert isinstance(answer, Receipt)
        return message, answer

    def accepted(self) -> list[UpdateSource]:
        with self.store.reading() as tx:
            known = tx.updates.accepted(TASK, 1)
        paths = (self.blobs.path_of(update.digest) for update in known)
        return [
            UpdateSource(update.update_id, update.weight, CUT, path, update.report.encoding)
            for update, path in zip(known, paths, strict=True)
        ]

    def next_model(self) -> dict[str, np.ndarray]:
        base = {name: values for name, values in BASE.items() if name in CUT}
        return advance(base, self.accepted(), floor=0.25, optimizer=ServerOptimizer(), moments={}).parameters

    def _asked(self) -> str:
        self.devices += 1
        device = f"device-{self.devices}"
        with self.store.transaction(durable=False) as tx:
            tx.devices.hello(device, "board", 1, 0.0)
            tx.offers.add(OfferRecord(TASK, 1, device, SUBMODEL, 1, 0.0))
        return device


@contextmanager
def desks() -> Iterator[list[Desk]]:
    with memory_folder() as folder, ExitStack() as ending:
        made = [Desk(folder / encoding.kind.value, encoding) for encoding in ENCODINGS]
        for desk in made:
            ending.callback(desk.store.close)
        yield made


def is_finite(model: dict[str, np.ndarray]) -> bool:
    return all(np.isfinite(values).all() for values in model.values())


def judged(desk: Desk, seeds: range, names: list[str]) -> Iterator[tuple[str, Receipt]]:
    for name, seed in zip(cycle(names), seeds, strict=False):
        yield name, desk.receipt(HOSTILE[name].harm, Random(seed))[1]


def test_no_hostile_update_gets_in_and_each_is_refused_by_name(proof: Proof) -> None:
    unnamed, admitted, infinite, seen = 0, 0, 0, Counter[str]()
    with desks() as all_desks:
        seeds = proof.seeds(short=240, full=10_000)
        for number, desk in enumerate(all_desks):
            own = seeds[number :: len(all_desks)]
            for name, receipt in judged(desk, own, hostile_to(desk.encoding)):
                admitted += receipt.verdict is Verdict.ACCEPTED
                is_named = receipt.refusal in HOSTILE[name].refusals and "\n" not in receipt.reason
                unnamed += not is_named
                seen[name] += 1
                assert is_named or proof.is_full, f"{name} {desk.encoding.kind.value}: {receipt}"
            assert desk.receipt(right, Random(0))[1].verdict is Verdict.ACCEPTED
            infinite += not is_finite(desk.next_model())
    assert {*seen} == {*HOSTILE}
    proof.show("S7", f"hostile updates of {seen.total()} that were admitted", admitted, at_most=0)
    proof.show("S7", f"hostile updates of {seen.total()} that were not refused by the right name", unnamed, at_most=0)
    proof.show("S7", f"global models of {len(ENCODINGS)} encodings that are not finite afterwards", infinite, at_most=0)


def test_second_update_of_a_device_is_a_duplicate() -> None:
    with desks() as (desk, *_):
        deltas = {name: np.float32(0.01) * values for name, values in extract(BASE, CUT).items()}
        update = Update(desk._asked(), TASK, 1, BASE_VERSION, desk.encoding, deltas)
        receipts = []
        for samples in (10, 11):
            update.deltas = {name: values / samples for name, values in deltas.items()}
            desk._asked = lambda: update.device  # type: ignore[method-assign]
            receipts.append(desk.receipt(lambda *_: right(update, Random(0)), Random(0))[1])
    assert [receipt.verdict for receipt in receipts] == [Verdict.ACCEPTED, Verdict.REJECTED_DUPLICATE]
    assert receipts[1].refusal is Refusal.DUPLICATE


def test_update_counts_no_more_than_policy_whatever_it_says() -> None:
    def inflated(update: Update, chance: Random) -> tuple[bytes, UpdateReady]:
        update.samples = 2**53
        return right(update, chance)

    with desks() as (desk, *_):
        assert desk.receipt(inflated, Random(0))[1].verdict is Verdict.ACCEPTED
        assert [source.weight for source in desk.accepted()] == [Limits().max_weight]


def test_without_admission_hostile_updates_get_in_and_the_model_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(intake, "admit_file", lambda *_: 10.0)
    names = ["a_value_that_is_none", "a_huge_norm", "another_shape"]
    with desks() as (desk, *_):
        verdicts = [receipt.verdict for _, receipt in judged(desk, range(20), names[:2])]
        assert {*verdicts} == {Verdict.ACCEPTED}
        with np.errstate(all="ignore"):
            assert not is_finite(desk.next_model())
        assert desk.receipt(HOSTILE[names[2]].harm, Random(0))[1].verdict is Verdict.ACCEPTED
        with pytest.raises(TensorTableError):
            desk.next_model()


def grown(folder: Path, optimizer: ServerOptimizer, rounds: int, *, is_limited: bool) -> dict[str, np.ndarray]:
    """The model after rounds in which all send as much as they are let, of as many samples as they are let."""
    model, moments = {"weight": np.ones((2, 3), np.float32)}, {}
    whole, limits, path = {"weight": Region(((range(2),), (range(3),)))}, Limits(), folder / "update"
    for _ in range(rounds):
        norm = 0.99 * limits.max_norm_ratio * np.linalg.norm(model["weight"].astype(np.float64))
        norm = min(norm, 0.99 * limits.max_norm) if is_limited else norm
        deltas = {"weight": np.full((2, 3), norm / np.sqrt(6), np.float32)}
        update = Update("pi", TASK, 1, BASE_VERSION, ENCODINGS[0], deltas, samples=2**53)
        file, message = right(update, Random(0))
        path.write_bytes(file)
        weight = admit_file(path, model, whole, message.report, limits) if is_limited else limits.max_weight
        sources = [UpdateSource(message.update_id, weight, whole, path)]
        made = advance(model, sources, floor=0.25, optimizer=optimizer, moments=moments)
        model, moments = made.parameters, made.moments
    return model


@pytest.mark.parametrize("kind", OptimizerKind)
def test_model_stays_finite_however_long_a_whole_fleet_makes_it_grow(tmp_path: Path, kind: OptimizerKind) -> None:
    optimizer = ServerOptimizer(kind, rate=1.0)
    assert is_finite(grown(tmp_path, optimizer, 200, is_limited=True))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # in the threads that sum
def test_without_a_limit_of_its_own_the_norm_grows_beyond_all_numbers(tmp_path: Path) -> None:
    """The control: five times the model in every round."""
    assert not is_finite(grown(tmp_path, ServerOptimizer(), 60, is_limited=False))
