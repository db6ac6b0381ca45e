"""Rollouts as a coordinator finds them when it starts, with the clocks turned by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator.delivery import desk
from coordinator.delivery.approving import approve, known_release, signatures_by
from coordinator.delivery.desk import RolloutDesk
from coordinator.delivery.keys import own_key
from coordinator.delivery.rollout import Command, Member
from coordinator.delivery.starting import command_rollout, start_rollout
from coordinator.resources import Resources
from coordinator.service import Service
from coordinator.store.database import Store
from coordinator.store.devices import Devices
from coordinator.store.plan import Plan
from coordinator.store.records import RolloutRecord
from coordinator.store.releases import Rollouts
from coordinator.store.states import AssignmentStatus, RolloutStatus
from edge_sdk.protocol.messages import CoordinatorMessage, ReleaseReport, Standing
from edge_sdk.protocol.signing import Role
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.exchange_node import wait
from tests.support.served import quick
from tests.support.signed import FLEET
from tests.support.waiting_release import ANN, BOB, TASK, open_with_release

INTERVAL_S = 300.0
RELEASE = 1


@dataclass
class Clocks:
    """Both clocks of a machine, in place of :mod:`time`."""

    now_s: float

    def time(self) -> float:
        return self.now_s

    monotonic = time


class Rollout:
    """Of one release to four devices; a coordinator that starts is another desk on the same store."""

    def __init__(self, store: Store, folder: Path, clocks: Clocks) -> None:
        self.store, self.clocks, self._folder = store, clocks, folder
        self.sent: list[str] = []
        with store.transaction() as tx:
            approve(tx, RELEASE, signatures_by(known_release(tx, RELEASE), [ANN, BOB]), clocks.now_s, "test")
            plan = Plan(success_share=0.01, error_share=1.0, health_interval_s=INTERVAL_S)
            self.number = start_rollout(tx, RELEASE, plan, clocks.now_s, "test").rollout

    def serve(self, fleet: str = FLEET) -> RolloutDesk:
        settings = quick(self._folder, fleet=fleet)
        ignored = {name: lambda *_: None for name in ("fetch", "cancel", "submit", "sweep")}
        key, blobs = own_key(self._folder, Role.ROUND), BlobFolder(settings.blob_dir)
        return RolloutDesk(
            Resources(settings=settings, store=self.store, blobs=blobs, key=key, send=self._note_sent, **ignored)
        )

    def _note_sent(self, device: str, _: CoordinatorMessage) -> None:
        self.sent.append(device)

    def report(self, served: RolloutDesk, device: str, standing: Standing, detail: str = "") -> None:
        with self.store.reading() as tx:
            (known,) = (it for it in tx.assignments.of_rollout(self.number) if it.device == device)
        healthy = standing is not Standing.ROLLED_BACK
        words = {"release": RELEASE, "task": TASK, "assignment": known.number, "healthy": healthy}
        served.reported(device, ReleaseReport(standing=standing, detail=detail, **words))

    @property
    def status(self) -> RolloutStatus:
        with self.store.reading() as tx:
            return tx.rollouts.get(self.number).status

    @property
    def by_device(self) -> dict[str, AssignmentStatus]:
        with self.store.reading() as tx:
            return {known.device: known.status for known in tx.assignments.of_rollout(self.number)}

    @property
    def standing(self) -> set[AssignmentStatus]:
        return {*self.by_device.values()}


@pytest.fixture
def rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rollout]:
    clocks = Clocks(time.time())
    store = open_with_release(tmp_path)
    monkeypatch.setattr(desk, "time", clocks)
    yield Rollout(store, tmp_path, clocks)
    store.close()


def test_time_that_the_coordinator_was_down_is_no_silence_of_its_devices(rollout: Rollout) -> None:
    rollout.serve().tick()
    assert rollout.standing == {AssignmentStatus.SENT}
    rollout.clocks.now_s += 12 * INTERVAL_S
    again = rollout.serve()
    again.tick()
    rollout.clocks.now_s += INTERVAL_S - 1
    again.tick()
    assert (rollout.status, rollout.standing) == (RolloutStatus.RUNNING, {AssignmentStatus.SENT})
    for device in ("d0", "d1", "d2", "d3"):
        rollout.report(again, device, Standing.HEALTHY)
    assert (rollout.status, rollout.standing) == (RolloutStatus.DONE, {AssignmentStatus.HEALTHY})


def test_time_that_the_broker_was_away_is_no_silence_of_its_devices(rollout: Rollout) -> None:
    served = rollout.serve()
    served.tick()
    served.link(is_up=False)
    for _ in range(12):
        rollout.clocks.now_s += INTERVAL_S / 2
        served.tick()
    served.link(is_up=True)
    rollout.clocks.now_s += INTERVAL_S - 1
    served.tick()
    assert (rollout.status, rollout.standing) == (RolloutStatus.RUNNING, {AssignmentStatus.SENT})
    rollout.clocks.now_s += 1
    served.tick()
    assert (rollout.status, rollout.standing) == (RolloutStatus.HALTED, {AssignmentStatus.FAILED})


ALL = ["d0", "d1", "d2", "d3"]


def test_release_is_not_sent_while_the_broker_is_away_and_again_once_it_is_back(rollout: Rollout) -> None:
    """What was sent just before may have been lost, and a device that may not work now asks for nothing."""
    served = rollout.serve()
    served.link(is_up=False)
    served.tick()
    assert (rollout.sent, rollout.standing) == ([], {AssignmentStatus.PENDING})
    served.link(is_up=True)
    served.tick()
    served.tick()
    assert rollout.sent == ALL
    rollout.report(served, "d0", Standing.HEALTHY)
    served.link(is_up=False)
    served.link(is_up=True)
    served.tick()
    served.tick()
    assert rollout.sent == [*ALL, "d1", "d2", "d3"]


def test_order_to_leave_a_release_is_sent_again_once_the_broker_is_back(rollout: Rollout) -> None:
    served = rollout.serve()
    served.tick()
    for device in ALL:
        rollout.report(served, device, Standing.HEALTHY)
    with rollout.store.transaction() as tx:
        command_rollout(tx, rollout.number, Command.ROLLBACK, rollout.clocks.now_s, "a test")
    served.tick()
    served.link(is_up=False)
    served.link(is_up=True)
    served.tick()
    assert rollout.sent == ALL * 3


def test_coordinator_sends_no_more_at_once_than_a_transport_queues(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "_SENT_A_TICK", 3)
    served = rollout.serve()
    served.tick()
    assert rollout.sent == ALL[:3]
    served.tick()
    assert rollout.sent == ALL


@pytest.mark.parametrize(("is_away", "standing"), [(True, AssignmentStatus.SENT), (False, AssignmentStatus.FAILED)])
def test_coordinator_tells_its_rollouts_of_a_broker_that_goes(
    rollout: Rollout, tmp_path: Path, is_away: bool, standing: AssignmentStatus
) -> None:
    hub = MemoryHub()
    settings = quick(tmp_path, fleet=FLEET, exit_when_done=False)  # its task, of which there is no model, fails
    with running(Service(settings, rollout.store, MemoryTransport(hub, ()))) as service:
        wait(lambda: service.vitals.is_connected and rollout.standing == {AssignmentStatus.SENT})
        if is_away:
            hub.stop()
            wait(lambda: not service.vitals.is_connected)
        rollout.clocks.now_s += INTERVAL_S
        seen_s = service.vitals.at_s
        wait(lambda: service.vitals.at_s > seen_s)
        assert rollout.standing == {standing}
        hub.start()
        wait(lambda: service.vitals.is_connected)
        assert rollout.standing == {standing}


@contextmanager
def running(service: Service) -> Iterator[Service]:
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        yield service
    finally:
        service.stop()
        thread.join(30)


def test_device_that_stays_silent_after_a_restart_fails_one_interval_later(rollout: Rollout) -> None:
    rollout.serve().tick()
    rollout.clocks.now_s += INTERVAL_S - 1
    again = rollout.serve()
    again.tick()
    rollout.clocks.now_s += INTERVAL_S
    again.tick()
    assert (rollout.status, rollout.standing) == (RolloutStatus.HALTED, {AssignmentStatus.FAILED})


def test_device_whose_healthy_release_was_damaged_gets_it_again_in_a_rollout_that_is_done(rollout: Rollout) -> None:
    served = rollout.serve()
    served.tick()
    for device in ("d0", "d1", "d2", "d3"):
        rollout.report(served, device, Standing.HEALTHY)
    rollout.sent.clear()
    rollout.report(served, "d1", Standing.TRYING)
    assert (rollout.sent, rollout.standing) == ([], {AssignmentStatus.HEALTHY}), "a report that arrived twice"
    for _ in range(2):
        rollout.report(served, "d1", Standing.TRYING, "its files are damaged")
    assert rollout.sent == ["d1", "d1"]
    assert rollout.standing == {AssignmentStatus.HEALTHY, AssignmentStatus.TRYING}
    rollout.report(served, "d1", Standing.HEALTHY)
    assert (rollout.status, rollout.standing) == (RolloutStatus.DONE, {AssignmentStatus.HEALTHY})


def test_device_whose_release_was_damaged_does_not_get_it_again_in_a_rollout_that_halted(rollout: Rollout) -> None:
    served = rollout.serve()
    served.tick()
    rollout.report(served, "d1", Standing.HEALTHY)
    with rollout.store.transaction() as tx:
        tx.rollouts.set_status(rollout.number, RolloutStatus.HALTED)
    served.tick()
    rollout.sent.clear()
    rollout.report(served, "d1", Standing.TRYING, "its files are damaged")
    assert not rollout.sent
    assert AssignmentStatus.HEALTHY in rollout.standing


def test_report_in_a_large_rollout_costs_no_look_at_its_other_devices(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing 10,000 devices with what they were took 0.14 s, twice for each of them, in the coordinator's loop."""
    served = rollout.serve()
    served.tick()
    compared = list[object]()
    monkeypatch.setattr(Member, "__eq__", lambda one, _: compared.append(one))
    monkeypatch.setattr(desk, "due", lambda *_: pytest.fail("what all devices are due is looked up"))
    rollout.report(served, "d1", Standing.HEALTHY)
    assert len(compared) <= 1
    assert served.send("d2")
    assert rollout.sent[-1] == "d2"


def test_tick_reads_no_record_of_a_device(rollout: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10,000 they took a tenth of a second, twice in each half second while one of them was away."""
    with rollout.store.transaction() as tx:
        tx.devices.offline("d3", 1)
        tx.devices.revoke("d2", rollout.clocks.now_s)
    monkeypatch.setattr(Devices, "all", lambda _: pytest.fail("every device's record is read"))
    transport = MemoryTransport(MemoryHub(), ())
    service = Service(quick(tmp_path, fleet=FLEET), rollout.store, transport)
    assert service._absences(10.0) == {"d2": 0.0, "d3": 0.0}
    assert service._absences(11.0) == {"d2": 1.0, "d3": 1.0}
    assert {*service._revoked} == {"d2"}
    monkeypatch.undo()
    served = rollout.serve()
    served.tick()
    monkeypatch.setattr(Devices, "all", lambda _: pytest.fail("every device's record is read"))
    served.tick()
    assert rollout.sent == ["d0", "d1"]


def test_tick_reads_no_rollout_that_another_has_replaced(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of years were read twice a second."""
    served = rollout.serve()
    served.tick()
    with rollout.store.transaction() as tx:
        tx.rollouts.set_status(rollout.number, RolloutStatus.HALTED)
        newer = start_rollout(tx, RELEASE, Plan(), rollout.clocks.now_s, "test").rollout
    read, reads = Rollouts._read, list[int]()

    def noted(self: Rollouts, row: Any) -> RolloutRecord:
        reads.append(row.rollout)
        return read(self, row)

    monkeypatch.setattr(Rollouts, "_read", noted)
    served.tick()
    assert {*reads} == {newer}


def test_release_for_another_fleet_goes_to_nobody_and_the_log_says_so(
    rollout: Rollout, caplog: pytest.LogCaptureFixture
) -> None:
    served = rollout.serve("barn")
    for _ in range(2):
        served.tick()
        assert not served.send("d1")
    assert (rollout.sent, rollout.standing) == ([], {AssignmentStatus.PENDING})
    (said,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith("rollout 1 goes to nobody: release 1 is for fleet default, and this is fleet barn")


def test_device_that_still_fetches_its_release_is_not_silent(rollout: Rollout) -> None:
    """Over 64 kbit/s, 20 MB take 40 minutes, and a task's own release waits for five."""
    served = rollout.serve()
    served.tick()
    for _ in range(5):
        rollout.clocks.now_s += INTERVAL_S - 1
        served.fetching("d1")
        served.tick()
    assert {device for device, status in rollout.by_device.items() if status is AssignmentStatus.SENT} == {"d1"}
    rollout.clocks.now_s += INTERVAL_S
    served.tick()
    assert rollout.standing == {AssignmentStatus.FAILED}
