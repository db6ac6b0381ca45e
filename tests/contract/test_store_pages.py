"""What pages ask of a store: some of many rows, the newest of each, and sums that the database adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.store.database import Store
from coordinator.store.devices import DeviceFilter
from coordinator.store.plan import Plan
from coordinator.store.records import AssignmentRecord, EvaluationRecord
from coordinator.store.states import AssignmentStatus, Outcome, Phase
from edge_sdk.protocol.messages import Failure, Verdict
from tests.contract.test_stores import BLOBS, HALF, OFFER, ROUND, UPDATE, address, postgres, store

__all__ = ["address", "postgres", "store"]  # fixtures


@pytest.fixture
def played(store: Store) -> Store:
    """Two tasks of two rounds each, in which three devices were asked."""
    with store.transaction() as tx:
        for device, profile in (("pi-4", "board"), ("jetson", "board"), ("Phone_1", "phone")):
            tx.devices.hello(device, profile, 1, 2.0)
        tx.devices.set_group("jetson", "lab")
        tx.devices.offline("jetson", 1)
        for offset, task in enumerate(("news", "motion")):
            tx.tasks.add(task, b"{}", 1.0)
            for number in (1, 2):
                tx.rounds.add(replace(ROUND, task=task, number=number))
                for device in ("pi-4", "jetson"):
                    at_s = 10.0 * number + offset
                    tx.offers.add(replace(OFFER, task=task, round=number, device=device, offered_s=at_s))
    return store


def delivered(store: Store, number: int, device: str, size_bytes: int, verdict: Verdict = Verdict.ACCEPTED) -> None:
    update_id = f"{number}{device}".encode().hex().ljust(64, "0")
    update = replace(UPDATE, update_id=update_id, round=number, device=device, size_bytes=size_bytes, verdict=verdict)
    with store.transaction() as tx:
        tx.updates.add(update)


def test_some_of_the_fleet_is_found_and_counted(played: Store) -> None:
    with played.reading() as tx:
        for wanted, found in (
            (DeviceFilter(), ["Phone_1", "jetson", "pi-4"]),
            (DeviceFilter("PI-"), ["pi-4"]),
            (DeviceFilter("boar"), ["jetson", "pi-4"]),
            (DeviceFilter("_"), ["Phone_1"]),
            (DeviceFilter("%"), []),
            (DeviceFilter(online=True), ["Phone_1", "pi-4"]),
            (DeviceFilter("board", online=False), ["jetson"]),
            (DeviceFilter(group="lab"), ["jetson"]),
            (DeviceFilter(group="LAB"), []),
        ):
            assert sorted(known.id for known in tx.devices.search(wanted, 10)) == found, wanted
            assert tx.devices.count(wanted) == len(found)
        assert tx.devices.groups() == ("default", "lab")


def test_pages_of_a_search_follow_each_other(played: Store) -> None:
    with played.reading() as tx:
        pages = [tx.devices.search(DeviceFilter(), 2, skipped) for skipped in (0, 2, 4)]
        assert {known.id for found in pages for known in found} == {known.id for known in tx.devices.all()}
        assert [len(found) for found in pages] == [2, 1, 0]


def test_newest_offer_of_each_device_is_found_over_all_tasks(played: Store) -> None:
    with played.reading() as tx:
        newest = tx.offers.newest_of(["pi-4", "jetson", "Phone_1", "ghost"])
        history = tx.offers.history("pi-4", 3)
        rest = tx.offers.history("pi-4", 3, 3)
    assert {device: (offer.task, offer.round) for device, offer in newest.items()} == {
        "pi-4": ("motion", 2),
        "jetson": ("motion", 2),
    }
    assert [(offer.task, offer.round) for offer in (*history, *rest)] == [
        ("motion", 2),
        ("news", 2),
        ("motion", 1),
        ("news", 1),
    ]


def test_offers_are_tallied_by_round_and_outcome(played: Store) -> None:
    with played.transaction() as tx:
        tx.offers.updated("news", 1, "pi-4", 30.0, 1)
        tx.offers.failed("news", 2, "jetson", 30.0, failure=Failure.POLICY, outcome=Outcome.PAUSED)
        assert tx.offers.tally("news", 0) == {
            1: {Outcome.UPDATED: 1, Outcome.OFFERED: 1},
            2: {Outcome.PAUSED: 1, Outcome.OFFERED: 1},
        }
        assert [*tx.offers.tally("news", 1)] == [2]


def test_only_accepted_updates_are_summed(played: Store) -> None:
    delivered(played, 1, "pi-4", 2**33)
    delivered(played, 1, "jetson", 5)
    delivered(played, 2, "pi-4", 7)
    delivered(played, 2, "jetson", 11, Verdict.REJECTED)
    with played.reading() as tx:
        assert tx.updates.uploaded_bytes("news", 0) == {1: 2**33 + 5, 2: 7}
        assert tx.updates.uploaded_bytes("news", 1) == {2: 7}
        found = tx.updates.of_device("pi-4", [("news", 1), ("motion", 1)])
        assert {key: update.size_bytes for key, update in found.items()} == {("news", 1): 2**33}
        assert tx.updates.of_device("pi-4", []) == {}


def test_rounds_are_counted_by_phase_and_come_newest_first(played: Store) -> None:
    with played.transaction() as tx:
        tx.rounds.decide("news", 1, Phase.CLOSED, 99.0)
        assert (tx.rounds.count("news", Phase.CLOSED), tx.rounds.count("motion", Phase.CLOSED)) == (1, 0)
        assert [known.number for known in tx.rounds.newest_first("news", 5)] == [2, 1]
        assert [known.number for known in tx.rounds.newest_first("news", 1)] == [2]


def test_evaluations_after_a_round_come_by_round_then_size(played: Store) -> None:
    with played.transaction() as tx:
        for number in (0, 1, 2):
            for width, parameters in (("full", 100), ("half", 50)):
                tx.evaluations.put(EvaluationRecord("news", number, width, parameters, 0.5, 1.0, 10))
        assert [(one.round, one.width) for one in tx.evaluations.since("news", 0)] == [
            (1, "half"),
            (1, "full"),
            (2, "half"),
            (2, "full"),
        ]
        assert len(tx.evaluations.since("news", -1)) == 6


def test_newest_assignment_of_each_device_is_found_and_tallied(played: Store) -> None:
    with played.transaction() as tx:
        release = tx.releases.add("news", 1, 5.0)

        def assigned(task: str, device: str) -> int:
            record = AssignmentRecord(
                0, None, release, task, device, 1, "m1-int8", HALF, BLOBS, 100, AssignmentStatus.SENT
            )
            return tx.assignments.add(record).number

        old = assigned("news", "pi-4")
        tx.assignments.stands(old, AssignmentStatus.FAILED, "slow", 6.0)
        newest = [assigned(task, "pi-4") for task in ("news", "motion")]
        tx.assignments.stands(assigned("news", "jetson"), AssignmentStatus.HEALTHY, "", 6.0)
        assert [one.number for one in tx.assignments.of_device("pi-4")] == [newest[1], newest[0]]
        assert [one.device for one in tx.assignments.newest_of("news", 5)] == ["jetson", "pi-4"]
        assert [one.number for one in tx.assignments.newest_of("news", 5, 1)] == [newest[0]]
        assert tx.assignments.tally("news") == {AssignmentStatus.HEALTHY: 1, AssignmentStatus.SENT: 1}
        assert tx.assignments.tally("nothing") == {}


def test_releases_come_newest_first_of_one_task_or_all(played: Store) -> None:
    with played.transaction() as tx:
        assert (tx.releases.count(None), tx.releases.tasks(), tx.releases.newest_first(None, 5)) == (0, (), ())
        first, second, third = (tx.releases.add(task, 1, 5.0) for task in ("news", "motion", "news"))
        assert [known.release for known in tx.releases.newest_first(None, 5)] == [third, second, first]
        assert [known.release for known in tx.releases.newest_first("news", 5)] == [third, first]
        assert [known.release for known in tx.releases.newest_first(None, 1, 1)] == [second]
        assert (tx.releases.count(None), tx.releases.count("news"), tx.releases.count("x")) == (3, 2, 0)
        assert tx.releases.tasks() == ("motion", "news")
        rollouts = [tx.rollouts.add(release, "news", Plan(), 6.0) for release in (third, first, first)]
        assert tx.rollouts.of_releases([first]) == (rollouts[1], rollouts[2])
        assert tx.rollouts.of_releases([first, third]) == tuple(rollouts)
        assert tx.rollouts.of_releases([]) == ()


def test_devices_of_a_rollout_come_by_stage_and_are_tallied(played: Store) -> None:
    healthy, failed = AssignmentStatus.HEALTHY, AssignmentStatus.FAILED
    with played.transaction() as tx:
        release = tx.releases.add("news", 1, 5.0)
        mine, other = (tx.rollouts.add(release, "news", Plan(), 6.0).rollout for _ in range(2))
        for rollout, device, stage, status in (
            (mine, "pi-4", 0, healthy),
            (mine, "jetson", 1, healthy),
            (mine, "jetson", 0, failed),
            (other, "jetson", 0, failed),
        ):
            tx.assignments.add(
                AssignmentRecord(0, rollout, release, "news", device, stage, "m1-int8", HALF, BLOBS, 100, status)
            )
        assert tx.assignments.by_stage(mine) == {(0, healthy): 1, (0, failed): 1, (1, healthy): 1}
        assert tx.assignments.by_stage(99) == {}
        assert {it: count for it, count in tx.assignments.standings(mine).items() if count} == {healthy: 2, failed: 1}
        assert [(it.stage, it.device) for it in tx.assignments.standing(mine, None, 9)] == [
            *((0, "jetson"), (0, "pi-4"), (1, "jetson")),
        ]
        assert [it.device for it in tx.assignments.standing(mine, None, 1, 1)] == ["pi-4"]
        assert [it.stage for it in tx.assignments.standing(mine, healthy, 9)] == [0, 1]
        assert tx.assignments.standing(mine, AssignmentStatus.SENT, 9) == ()
