"""A device is revoked in the middle of a round: nothing of it is in the next model, whenever that happens.

One coordinator and three agents that move when told, so that the instant is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from coordinator.fleet.revocation import REASON, revoke_device
from coordinator.store.devices import Devices
from coordinator.store.states import Outcome, Phase
from edge_sdk.protocol.messages import GRAIN_BYTES, Chunk, UpdateReady, Verdict, decode_from_device
from edge_sdk.protocol.topics import Channel, parse
from tests.support.crash import note_aggregations
from tests.support.light_model import light_models, light_task
from tests.support.new_store import new_store
from tests.support.stepped import Clock, SteppedFleet, ticking

NAMES = ("a", "b", "thief")
DEADLINE_S = 100.0


class Case:
    """A round of three devices; ``thief`` is the one to be revoked."""

    def __init__(self, folder: Path, ending: ExitStack, quorum: int = 2) -> None:
        run = ending.enter_context(light_models())
        ending.enter_context(ticking(clock := Clock()))
        state = folder / "coordinator"
        state.mkdir()
        task = light_task(state, rounds=1, min_devices=3, quorum=quorum, round_deadline_s=DEADLINE_S)
        store = new_store(state)
        with store.transaction() as tx:
            tx.tasks.add(task.name, msgspec.json.encode(task), 0.0)
        store.close()
        self.fleet = SteppedFleet(folder, NAMES, clock)
        ending.callback(self.fleet.close)
        note_aggregations(run, self.fleet.notes)
        self.until(lambda: all(device.training for device in self.fleet.devices.values()))

    def until(self, holds: Callable[[], object], hold_back: Callable[[object], bool] = lambda _: False) -> None:
        """Carry what flies, but what is held back, and let time pass, until so."""
        for _ in range(2000):
            if holds():
                return
            flying = [index for index, message in enumerate(self.fleet.wire.flying) if not hold_back(message)]
            if flying:
                self.fleet.carry(flying[0])
            else:
                self.fleet.let_time_pass(0.6)
        raise AssertionError("it never came to that")

    def revoke(self) -> None:
        revoke_device(self.fleet.service.store, "thief", 5.0, "ann")

    def finish(self, *names: str) -> None:
        for name in names:
            self.fleet.devices[name].finish()

    def accepted(self) -> set[str]:
        with self.fleet.service.store.reading() as tx:
            return {update.device for update in tx.updates.accepted("task", 1)}

    def lacks_one_grain(self) -> bool:
        """Whether all of an update but one grain is with the coordinator."""
        return [len([*it.partial.missing()]) for it in self.fleet.service._exchange._transfers.values()] == [1]

    def phase(self) -> Phase:
        with self.fleet.service.store.reading() as tx:
            known = tx.rounds.get("task", 1)
        assert known is not None
        return known.phase

    def has_version(self) -> bool:
        with self.fleet.service.store.reading() as tx:
            latest = tx.versions.latest("task")
        return latest is not None and latest.number == 1

    def aggregated(self) -> list[set[str]]:
        """The updates that each aggregation of the round had."""
        return [set(it.updates) for it in self.fleet.notes if it.what == "aggregate"]

    def update_of(self, name: str) -> str:
        return next(it.update for it in self.fleet.notes if it.what == "update" and it.process == name)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with ExitStack() as ending:
        yield Case(tmp_path, ending)


def is_chunk_of_thief(message: object) -> bool:
    topic = parse(message.topic)  # type: ignore[attr-defined]
    return topic.device == "thief" and topic.channel is Channel.CHUNK_UP


def is_last_grain_of_thief(message: object) -> bool:
    if not is_chunk_of_thief(message):
        return False
    chunk = decode_from_device(message.payload)  # type: ignore[attr-defined]
    return isinstance(chunk, Chunk) and len(chunk.data) < GRAIN_BYTES


def while_it_trains(case: Case) -> None:
    case.revoke()
    case.finish(*NAMES)


def while_it_uploads(case: Case) -> None:
    case.finish(*NAMES)
    case.until(lambda: any(map(is_chunk_of_thief, case.fleet.wire.flying)), hold_back=is_chunk_of_thief)
    case.revoke()


def between_its_bytes_and_the_loop(case: Case) -> None:
    """The loop has not looked at the store yet when the last byte arrives."""
    case.finish("thief")
    case.until(case.lacks_one_grain, hold_back=is_last_grain_of_thief)
    case.revoke()
    (last,) = [message for message in case.fleet.wire.flying if is_last_grain_of_thief(message)]
    case.fleet.service._handle(last)
    case.finish("a", "b")


def once_it_is_accepted(case: Case) -> None:
    case.finish("thief", "a")
    case.until(lambda: case.accepted() == {"thief", "a"})
    case.revoke()
    assert case.accepted() == {"a"}
    case.finish("b")


def once_all_are_aggregated(case: Case) -> None:
    """The version is made, and not recorded yet."""
    case.finish(*NAMES)
    case.until(case.aggregated)
    assert not case.has_version()
    case.revoke()


MOMENTS = (
    while_it_trains,
    while_it_uploads,
    between_its_bytes_and_the_loop,
    once_it_is_accepted,
    once_all_are_aggregated,
)


@pytest.mark.case("S2", "moments to revoke a device after which it is in the next model")
@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_of_a_revoked_device_is_in_the_next_model(case: Case, moment: Callable[[Case], None]) -> None:
    moment(case)
    case.until(case.has_version)
    others = {case.update_of("a"), case.update_of("b")}
    assert case.accepted() == {"a", "b"}
    assert case.aggregated()[-1] == others
    with case.fleet.service.store.reading() as tx:
        offer = tx.offers.get("task", 1, "thief")
        version = tx.versions.latest("task")
    assert offer is not None
    assert (offer.outcome, offer.detail) == (Outcome.FAILED, REASON)
    last = [it.digest for it in case.fleet.notes if it.what == "aggregate"][-1]
    assert version is not None
    assert version.digest == last, "what was recorded is the aggregate without it"


def test_device_that_is_not_revoked_is_in_the_next_model(case: Case) -> None:
    """The control."""
    case.finish(*NAMES)
    case.until(case.has_version)
    assert case.aggregated() == [{case.update_of(name) for name in NAMES}]


@pytest.mark.parametrize("gap", ["the update counts", "the version is kept"])
def test_each_look_at_the_store_is_needed(case: Case, monkeypatch: pytest.MonkeyPatch, gap: str) -> None:
    """The control of the two moments at which only a transaction can tell."""
    if gap == "the update counts":
        monkeypatch.setattr(Devices, "get", lambda devices, _: devices._one(id="a"))
        between_its_bytes_and_the_loop(case)
        assert case.accepted() == {"thief"}
    else:
        monkeypatch.setattr("coordinator.rounds.conductor.still_count", lambda *_: True)
        once_all_are_aggregated(case)
        case.until(case.has_version)
        assert case.update_of("thief") in case.aggregated()[-1]


def test_round_that_loses_its_quorum_after_its_end_is_abandoned(tmp_path: Path) -> None:
    with ExitStack() as ending:
        case = Case(tmp_path, ending, quorum=3)
        once_all_are_aggregated(case)
        case.until(lambda: case.phase() is Phase.ABANDONED)
        assert not case.has_version()


def test_revoked_device_is_told_nothing_and_is_not_heard(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.revoke()
    case.fleet.let_time_pass(0.6)
    case.fleet.let_time_pass(10.0)
    case.fleet.wire.flying.clear()
    case.finish("thief")
    case.fleet.let_time_pass(20.0)
    said = [message for message in case.fleet.wire.flying if parse(message.topic).device == "thief"]
    assert any(isinstance(decode_from_device(message.payload), UpdateReady) for message in said)
    for _ in range(len(case.fleet.wire.flying)):
        case.fleet.carry(0)
    assert not [it for it in case.fleet.wire.flying if parse(it.topic).device == "thief"], "no answer"
    overheard = [it for it in caplog.messages if "is revoked but still connected to the broker" in it]
    assert len(overheard) == 1, "and the log says so once"


@pytest.mark.long
def test_coordinator_that_starts_later_leaves_it_out_too(case: Case) -> None:
    case.finish("thief", "a")
    case.until(lambda: case.accepted() == {"thief", "a"})
    case.revoke()
    case.fleet.restart("coordinator")
    case.finish("b")
    case.until(case.has_version)
    assert case.accepted() == {"a", "b"}
    with case.fleet.service.store.reading() as tx:
        verdicts = {update.device: update.verdict for update in tx.updates.of_round("task", 1)}
    assert verdicts["thief"] is Verdict.REJECTED
