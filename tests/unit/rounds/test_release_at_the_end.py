"""A task's last stage, its release, while operators do other things: a real service, one scripted device."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator import service
from coordinator.delivery import releases
from coordinator.delivery.approving import approve, known_release, record_release, signatures_by
from coordinator.delivery.keys import held_keys, key_file
from coordinator.delivery.rollout import Command
from coordinator.delivery.starting import command_rollout, start_rollout
from coordinator.rounds.tasks import change_status
from coordinator.store.plan import Plan
from coordinator.store.states import AssignmentStatus, RolloutStatus, TaskStatus
from edge_sdk.protocol.messages import Offer, Recipe, Snapshot
from edge_sdk.protocol.releases import Export
from edge_sdk.protocol.signing import Role
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.light_model import light_models, light_task
from tests.support.served import Served, quick
from tests.support.signed import export
from tests.support.simulator import Answer, Fleet, Work, able_device, small_update

_RECIPE = Recipe(learning_rate=0.1, batch_size=1, epochs=1, max_tokens=8)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_TICK_S", 0.02)


class Shop:
    """A coordinator with a task of one round and one device, which is released; it may be served again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hub = folder, MemoryHub()

    def serve(self, **settings: object) -> Served:
        one = {"rounds": 1, "min_devices": 1, "quorum": 1, "release": True}
        link = MemoryTransport(self.hub, coordinator_filters("default"))
        return Served(
            quick(self.folder, exit_when_done=False, **settings), light_task(self.folder, "news", **one), link
        )

    def fleet(self, work: Work = small_update, snapshot: Snapshot | None = None) -> Fleet:
        return Fleet(
            ("pi",),
            lambda _, filters, will: MemoryTransport(self.hub, filters, will=will),
            work=work,
            snapshot=lambda _: snapshot or able_device(),
        )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with light_models():
        yield Shop(tmp_path)


def status(served: Served) -> TaskStatus:
    return served.read(lambda tx: tx.tasks.get("news")).status


def once_told(event: threading.Event) -> Work:
    """Nobody answers before that."""

    def work(device: str, offer: Offer, weights: bytes) -> Answer:
        return small_update(device, offer, weights) if event.is_set() else None

    return work


def open_another_rollout(served: Served) -> None:
    """An operator's, of an earlier version, which is paused."""
    with served.store.transaction() as tx:
        now_s = time.time()
        own = {"labels": ("a", "b"), "fleet": "default", "groups": (), "now_s": now_s, "days": 2.0}
        release = record_release(tx, "news", (0, "ab" * 32), [export()], _RECIPE, **own)
        keys = held_keys(served.config.state_dir, Role.RELEASE)
        approve(tx, release, signatures_by(known_release(tx, release), keys), now_s, "a test")
        rollout = start_rollout(tx, release, Plan(), now_s, "a test").rollout
        command_rollout(tx, rollout, Command.PAUSE, now_s, "a test")


def test_task_ends_while_a_rollout_of_it_is_open(shop: Shop) -> None:
    told = threading.Event()
    with shop.serve() as served, shop.fleet(once_told(told)):
        served.wait_until(lambda: served.read(lambda tx: tx.rounds.collecting("news")))
        open_another_rollout(served)
        told.set()
        served.wait_until(lambda: status(served) is TaskStatus.DONE)
        made, rollouts = served.read(lambda tx: (tx.releases.all(), tx.rollouts.all()))
        assert [(known.release, known.version, len(known.signatures)) for known in made] == [(1, 0, 1), (2, 1, 1)]
        assert [(known.release, known.status) for known in rollouts] == [(1, RolloutStatus.PAUSED)]


def test_release_has_a_submodel_for_a_device_that_is_offline_when_the_task_ends(shop: Shop) -> None:
    """It got what suited a device that was there; where none was there, or none could run it, nothing was released."""
    with shop.serve() as served:
        with served.store.transaction() as tx:
            for device in ("away", "revoked"):
                tx.devices.hello(device, "board", 1, 0.0)
                tx.devices.seen(device, 0.0, able_device())
                tx.devices.offline(device, 1)
            tx.devices.revoke("revoked", 0.0)
        with shop.fleet(snapshot=msgspec.structs.replace(able_device(), inference_memory_bytes=1)):
            served.wait_until(lambda: status(served) is TaskStatus.DONE)
        found = served.read(lambda tx: tx.assignments.of_task("news"))
        assert [(known.device, known.status) for known in found] == [("away", AssignmentStatus.PENDING)]


def test_task_fails_where_its_release_cannot_be_signed(shop: Shop) -> None:
    with shop.serve() as served, shop.fleet():
        key_file(shop.folder, Role.RELEASE).write_text("no key")
        served.wait_until(lambda: status(served) is TaskStatus.FAILED)
        assert "release.key is not a key" in str(served.read(lambda tx: tx.tasks.get("news")).failure)
        assert served.is_running


class Slow:
    """The making of a release, which begins and goes on when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on, self._build = threading.Event(), threading.Event(), releases.build_exports
        monkeypatch.setattr(releases, "build_exports", self._make)

    def _make(self, *words: Any) -> tuple[Export, ...]:
        self.begun.set()
        assert self.go_on.wait(30)
        return self._build(*words)


@contextmanager
def stopped_while_it_is_made(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Served, Slow]]:
    """A coordinator whose task has just been stopped, while its release waits to be made."""
    slow = Slow(monkeypatch)
    with shop.serve() as served, shop.fleet():
        assert slow.begun.wait(30)
        change_status(served.store, "news", TaskStatus.STOPPED, 0.0, "a test")
        time.sleep(0.2)
        yield served, slow


@pytest.mark.parametrize("is_started_at_once", [True, False])
def test_task_that_is_stopped_while_its_release_is_made_releases_it_once_it_is_started(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, is_started_at_once: bool
) -> None:
    with stopped_while_it_is_made(shop, monkeypatch) as (served, slow):
        if not is_started_at_once:
            slow.go_on.set()
            time.sleep(0.5)
            assert status(served) is TaskStatus.STOPPED
            assert served.read(lambda tx: tx.releases.all()) == ()
        change_status(served.store, "news", TaskStatus.PENDING, 0.0, "a test")
        time.sleep(0.2)
        slow.go_on.set()
        served.wait_until(lambda: status(served) is TaskStatus.DONE)
        assert len(served.read(lambda tx: tx.releases.all())) == len(served.read(lambda tx: tx.rollouts.all())) == 1


def test_release_that_an_operator_has_made_of_the_last_version_is_not_the_tasks_own(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_while_it_is_made(shop, monkeypatch) as (served, slow):
        slow.go_on.set()
        with served.store.transaction() as tx:
            own = {"labels": ("a", "b"), "fleet": "default", "groups": (), "now_s": time.time(), "days": 2.0}
            record_release(tx, "news", (1, "ab" * 32), [export()], _RECIPE, **own)
        time.sleep(0.5)
        change_status(served.store, "news", TaskStatus.PENDING, 0.0, "a test")
        served.wait_until(lambda: status(served) is TaskStatus.DONE)
        made, rollouts = served.read(lambda tx: (tx.releases.all(), tx.rollouts.all()))
        assert [(known.release, known.version, len(known.signatures)) for known in made] == [(1, 1, 0), (2, 1, 1)]
        assert [known.release for known in rollouts] == [2]
