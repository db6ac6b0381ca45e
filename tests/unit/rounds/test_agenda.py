"""Tasks side by side, and an operator who pauses, stops and starts them: a real service, scripted devices."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from coordinator import service
from coordinator.planning.selection import Schedule, Targets
from coordinator.rounds.machine import MAX_ABANDONED
from coordinator.rounds.recovery import recorded_blobs
from coordinator.rounds.tasks import change_status
from coordinator.store.records import OfferRecord, RoundRecord
from coordinator.store.states import Outcome, Phase, TaskStatus
from edge_sdk.errors import ConfigurationError, ModelFormatError
from edge_sdk.protocol.messages import Failure, Offer
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.light_model import light_models, light_task
from tests.support.served import Served, quick
from tests.support.simulator import Answer, Fleet, Work, small_update

DEVICES = ("pi-1", "pi-2", "pi-3", "jetson-1", "jetson-2", "jetson-3")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_TICK_S", 0.02)


class Shop:
    """A coordinator with ``tasks`` of three devices a round, in one folder; it may be served again and again."""

    def __init__(self, folder: Path, **tasks: dict[str, object]) -> None:
        self.folder, self.hub = folder, MemoryHub()
        self._first, *self._others = (light_task(folder, name, **settings) for name, settings in tasks.items())

    def serve(self, wanted: TaskStatus | None = None) -> Served:
        """Ready to be entered; an operator has changed the first task before."""
        transport = MemoryTransport(self.hub, coordinator_filters("default"))
        served = Served(quick(self.folder, gather_s=5.0, retry_after_s=0.05), self._first, transport)
        with served.store.transaction() as tx:
            for task in self._others:
                tx.tasks.add(task.name, msgspec.json.encode(task), time.time())
        if wanted is not None:
            change_status(served.store, self._first.name, wanted, 0.0, "a test")
        return served

    def fleet(self, work: Work = small_update) -> Fleet:
        return Fleet(DEVICES, lambda _, filters, will: MemoryTransport(self.hub, filters, will=will), work=work)


@pytest.fixture
def light() -> Iterator[None]:
    with light_models():
        yield


def offers(served: Served, task: str) -> list[OfferRecord]:
    numbers = [known.number for known in rounds(served, task)]
    return [offer for number in numbers for offer in served.read(lambda tx, n=number: tx.offers.of_round(task, n))]


def rounds(served: Served, task: str) -> tuple[RoundRecord, ...]:
    return served.read(lambda tx: tx.rounds.all(task))


def status(served: Served, task: str) -> TaskStatus:
    return served.read(lambda tx: tx.tasks.get(task)).status


def in_phase(served: Served, task: str, phase: Phase) -> int:
    return sum(known.phase is phase for known in rounds(served, task))


@pytest.mark.usefixtures("light")
def test_two_tasks_run_side_by_side_and_no_device_works_for_both_at_once(tmp_path: Path) -> None:
    shop = Shop(tmp_path, left={"rounds": 4}, right={"rounds": 4})
    with shop.serve() as served, shop.fleet():
        served.wait_for_end()
    with shop.serve() as served:
        left, right = offers(served, "left"), offers(served, "right")
        assert {offer.outcome for offer in (*left, *right)} == {Outcome.UPDATED}
        assert in_phase(served, "left", Phase.CLOSED) == in_phase(served, "right", Phase.CLOSED) == 4
        spans = sorted((one.offered_s, one.answered_s or 0.0, one.device, one.task) for one in (*left, *right))
        for device in DEVICES:
            own = [(begin, end) for begin, end, name, _ in spans if name == device]
            assert all(begin >= before_end for (_, before_end), (begin, _) in pairwise(own))
        assert {task for *_, task in spans[: len(spans) // 2]} == {"left", "right"}


@pytest.mark.long
@pytest.mark.usefixtures("light")
def test_one_task_at_a_time_where_so_configured(tmp_path: Path) -> None:
    shop = Shop(tmp_path, left={"rounds": 2}, right={"rounds": 2})
    transport = MemoryTransport(shop.hub, coordinator_filters("default"))
    with Served(quick(tmp_path, tasks_at_once=1), light_task(tmp_path, "left"), transport) as served, shop.fleet():
        with served.store.transaction() as tx:
            tx.tasks.add("right", msgspec.json.encode(light_task(tmp_path, "right")), time.time())
        served.wait_for_end()
        left, right = rounds(served, "left"), rounds(served, "right")
    assert max(known.closed_s or 0 for known in left) <= min(known.opened_s for known in right)


@pytest.mark.usefixtures("light")
def test_what_one_task_sweeps_away_no_other_needs(tmp_path: Path) -> None:
    """A round of ``slow`` stays open, with an update that has come, while ``fast`` closes its rounds and sweeps."""
    release = threading.Event()
    some = Targets(devices=("pi-*",))
    shop = Shop(tmp_path, slow={"rounds": 1, "targets": some}, fast={"rounds": 4})
    with shop.serve() as served, shop.fleet(silent_in("slow", release)):
        served.wait_until(lambda: status(served, "fast") is TaskStatus.DONE)
        assert in_phase(served, "slow", Phase.COLLECTING) == 1
        blobs = {path.name for path in (tmp_path / "blobs").iterdir()}
        accepted = served.read(lambda tx: tx.updates.accepted("slow", 1))
        assert {update.digest for update in accepted} <= blobs
        release.set()
        served.wait_for_end()
    with shop.serve() as served:
        assert in_phase(served, "slow", Phase.CLOSED) == 1
        assert {offer.outcome for offer in offers(served, "slow")} == {Outcome.UPDATED}


def silent_in(task: str, until: threading.Event) -> Work:
    """Nobody answers in ``task`` before that."""

    def work(device: str, offer: Offer, weights: bytes) -> Answer:
        return small_update(device, offer, weights) if offer.task != task or until.is_set() else None

    return work


def first_alone() -> Work:
    """In each round only one device answers: the first that is asked."""
    chosen: dict[int, str] = {}

    def work(device: str, offer: Offer, weights: bytes) -> Answer:
        return small_update(device, offer, weights) if chosen.setdefault(offer.round, device) == device else None

    return work


@pytest.mark.usefixtures("light")
def test_paused_task_ends_its_round_opens_no_other_and_goes_on_where_it_was(tmp_path: Path) -> None:
    shop = Shop(tmp_path, news={"rounds": 6})
    with shop.serve() as served, shop.fleet():
        served.wait_until(lambda: in_phase(served, "news", Phase.CLOSED) >= 1)
        change_status(served.store, "news", TaskStatus.PAUSED, 0.0, "a test")
        served.wait_until(lambda: not in_phase(served, "news", Phase.COLLECTING))
        time.sleep(0.1)
        before = len(rounds(served, "news"))
        time.sleep(1)
        assert len(rounds(served, "news")) == before < 6
        change_status(served.store, "news", TaskStatus.PENDING, 0.0, "a test")
        served.wait_for_end()
    with shop.serve() as served:
        assert [known.phase for known in rounds(served, "news")] == [Phase.CLOSED] * 6
        assert status(served, "news") is TaskStatus.DONE


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("is_restarted", [True, pytest.param(False, marks=pytest.mark.long)])
def test_stopped_task_decides_its_round_with_what_has_come_and_starts_from_there(
    tmp_path: Path, is_restarted: bool
) -> None:
    shop = Shop(tmp_path, news={"rounds": 2, "quorum": 1, "round_deadline_s": 3600.0})
    with shop.serve() as served, shop.fleet(first_alone()):
        served.wait_until(lambda: len(served.accepted) == 1)
        if not is_restarted:
            change_status(served.store, "news", TaskStatus.STOPPED, 0.0, "a test")
            served.wait_for_end()
    if is_restarted:  # the round is open in the store, and nobody serves it
        with shop.serve(TaskStatus.STOPPED) as served:
            served.wait_for_end()
    with shop.serve() as served:
        assert [known.phase for known in rounds(served, "news")] == [Phase.CLOSED]
        assert served.read(lambda tx: tx.versions.latest("news")).number == 1, "the one update counts"
    with shop.serve(TaskStatus.PENDING) as served, shop.fleet():
        served.wait_for_end()
    with shop.serve() as served:
        assert [known.phase for known in rounds(served, "news")] == [Phase.CLOSED] * 2
        assert status(served, "news") is TaskStatus.DONE


@pytest.mark.long
@pytest.mark.usefixtures("light")
def test_paused_task_ends_its_round_after_a_restart_too(tmp_path: Path) -> None:
    shop = Shop(tmp_path, news={"rounds": 3, "round_deadline_s": 3600.0})
    with shop.serve() as served, shop.fleet(lambda *_: None):
        served.wait_until(lambda: in_phase(served, "news", Phase.COLLECTING) == 1)
        change_status(served.store, "news", TaskStatus.PAUSED, 0.0, "a test")
    with shop.serve() as served, shop.fleet():
        served.wait_until(lambda: in_phase(served, "news", Phase.CLOSED) == 1)
        served.wait_until(lambda: served.read(lambda tx: tx.versions.latest("news")).number == 1)
        assert status(served, "news") is TaskStatus.PAUSED


@pytest.mark.usefixtures("light")
def test_task_that_failed_is_started_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path, news={"rounds": 2, "quorum": 2})
    with shop.serve() as served, shop.fleet(lambda *_: Failure.STORAGE):
        served.wait_for_end()
        failed = served.read(lambda tx: tx.tasks.get("news"))
        assert failed.status is TaskStatus.FAILED
        words = rf"its last {MAX_ABANDONED} rounds had too few updates \(\d+ storage\)"
        assert re.fullmatch(words, failed.failure)
    with shop.serve(TaskStatus.PENDING) as served, shop.fleet():
        served.wait_until(lambda: in_phase(served, "news", Phase.CLOSED) >= 1)
        assert served.read(lambda tx: tx.tasks.get("news")).failure is None


@pytest.mark.usefixtures("light")
def test_task_that_has_ended_leaves_no_blobs_that_nobody_needs(tmp_path: Path) -> None:
    """What its last round was to be trained from stayed, a model for each size of device."""
    shop = Shop(tmp_path, news={"rounds": 2, "quorum": 2})
    with shop.serve() as served, shop.fleet(lambda *_: Failure.STORAGE):
        served.wait_for_end()
        assert status(served, "news") is TaskStatus.FAILED
        needed = served.read(recorded_blobs)
    assert {*BlobFolder(tmp_path / "blobs").digests()} == needed


@pytest.mark.usefixtures("light")
def test_task_that_was_started_again_goes_on_after_a_restart_too(tmp_path: Path) -> None:
    shop = Shop(tmp_path, news={"rounds": 2, "quorum": 2})
    with shop.serve() as served, shop.fleet(lambda *_: Failure.STORAGE):
        served.wait_for_end()
    with shop.serve(TaskStatus.PENDING) as served:
        served.wait_until(lambda: status(served, "news") is TaskStatus.RUNNING)
    with shop.serve() as served, shop.fleet():
        served.wait_for_end()
    with shop.serve() as served:
        assert status(served, "news") is TaskStatus.DONE


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelFormatError("m has no weights"), "m has no weights"),
        (RuntimeError("shapes differ\nat line 7"), "RuntimeError: shapes differ"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["own", "library", "memory"],
)
def test_task_whose_work_ends_in_an_error_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def prepare(*_: object, **__: object) -> None:
        raise error

    link = MemoryTransport(MemoryHub(), coordinator_filters("default"))
    with light_models() as run:
        monkeypatch.setattr(run, "prepare", prepare)
        with Served(quick(tmp_path, exit_when_done=False), light_task(tmp_path, "news"), link) as served:
            served.wait_until(lambda: status(served, "news") is TaskStatus.FAILED)
            assert served.read(lambda tx: tx.tasks.get("news")).failure == told


@pytest.mark.usefixtures("light")
def test_only_devices_that_are_meant_are_asked(tmp_path: Path) -> None:
    shop = Shop(tmp_path, news={"rounds": 1, "targets": Targets(devices=("pi-*",))})
    with shop.serve() as served, shop.fleet():
        served.wait_for_end()
        assert sorted(offer.device for offer in offers(served, "news")) == ["pi-1", "pi-2", "pi-3"]


@pytest.mark.usefixtures("light")
def test_round_takes_in_no_more_devices_than_it_may(tmp_path: Path) -> None:
    shop = Shop(tmp_path, news={"rounds": 4, "max_devices": 3, "min_devices": 6})
    with shop.serve() as served, shop.fleet():
        served.wait_for_end()
        asked = [(offer.round, offer.device) for offer in offers(served, "news")]
    assert [sum(number == one for one, _ in asked) for number in range(1, 5)] == [3] * 4
    assert len({device for _, device in asked}) > 3, "others in other rounds"


@pytest.mark.usefixtures("light")
def test_abandoned_round_does_not_draw_the_same_devices_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path, news={"rounds": 1, "max_devices": 2, "min_devices": 6, "quorum": 2})
    with shop.serve() as served, shop.fleet(lambda *_: Failure.STORAGE):
        served.wait_for_end()
        asked = [(offer.round, offer.device) for offer in offers(served, "news")]
        assert status(served, "news") is TaskStatus.FAILED
    cohorts = {number: frozenset(device for one, device in asked if one == number) for number, _ in asked}
    assert len(cohorts) == 5
    assert len({*cohorts.values()}) > 2


@pytest.mark.usefixtures("light")
def test_round_opens_no_sooner_than_its_schedule_says(tmp_path: Path) -> None:
    shop = Shop(tmp_path, news={"rounds": 3, "schedule": Schedule(every_s=0.7)})
    with shop.serve() as served, shop.fleet():
        served.wait_for_end()
        opened_s = [known.opened_s for known in rounds(served, "news")]
    assert all(later - earlier >= 0.7 for earlier, later in pairwise(opened_s))


@pytest.mark.parametrize(
    ("wanted", "found", "words"),
    [
        (TaskStatus.PAUSED, TaskStatus.DONE, "is done and cannot be paused"),
        (TaskStatus.PENDING, TaskStatus.RUNNING, "is running and cannot be started"),
        (TaskStatus.STOPPED, TaskStatus.STOPPED, "is stopped and cannot be stopped"),
    ],
)
def test_status_that_makes_no_sense_is_refused(
    tmp_path: Path, wanted: TaskStatus, found: TaskStatus, words: str
) -> None:
    served = Shop(tmp_path, news={}).serve()
    with served.store.transaction() as tx:
        tx.tasks.set_status("news", found)
    with pytest.raises(ConfigurationError, match=words):
        change_status(served.store, "news", wanted, 0.0, "a test")
    with pytest.raises(ConfigurationError, match="no task 'views'; the tasks are news"):
        change_status(served.store, "views", wanted, 0.0, "a test")
    served.store.close()
