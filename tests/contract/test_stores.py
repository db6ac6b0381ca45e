"""What every store must do, whatever it stands on."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import column, insert, inspect, table, text

from coordinator.rounds.intake import Intake
from coordinator.store import migrations
from coordinator.store.database import Store, Transaction
from coordinator.store.migrations import HEAD, move_to, revision_of
from coordinator.store.opening import is_served, look_into, move_store, open_store, sole_user
from coordinator.store.plan import Plan
from coordinator.store.records import (
    AssignmentRecord,
    CertificateRecord,
    EnrolmentRecord,
    EvaluationRecord,
    OfferRecord,
    PasswordRecord,
    ReleaseRecord,
    RootRecord,
    RoundRecord,
    UpdateRecord,
    VersionRecord,
)
from coordinator.store.states import AssignmentStatus, Outcome, Phase, RolloutStatus, TaskStatus
from coordinator.store.tables import metadata
from coordinator.store.totals import RoundTotals
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import ConfigurationError, StateInUseError, StorageError
from edge_sdk.protocol.messages import (
    BlobEntry,
    Failure,
    Part,
    Receipt,
    Refusal,
    ReleaseReport,
    Snapshot,
    Standing,
    TrainingReport,
    UpdateReady,
    Verdict,
)
from edge_sdk.protocol.releases import Trial
from edge_sdk.protocol.signing import Signature
from tests.support.postgres import emptied, postgres_server

HALF = Submodel((0, 1), (2, 2), (6, 6))
BLOBS = (BlobEntry(part=Part.WEIGHTS, digest="a" * 64, size_bytes=2**33),)
SNAPSHOT = Snapshot(
    memory_total_bytes=2**35,
    memory_available_bytes=2**34,
    training_memory_bytes=2**33,
    inference_memory_bytes=2**30,
    threads=4,
    battery_share=0.5,
)
REPORT = TrainingReport(
    samples=100,
    steps=7,
    loss_first=1.5,
    loss_last=0.25,
    seconds=3.5,
    peak_memory_bytes=2**28,
    downloaded_bytes=2**33,
    uploaded_bytes=2**20,
)
ROUND = RoundRecord("news", 1, "b" * 64, Phase.COLLECTING, quorum=1, opened_s=10.5, deadline_s=610.5)
OFFER = OfferRecord("news", 1, "pi-4", HALF, predicted_memory_bytes=2**33, offered_s=11.0)
UPDATE = UpdateRecord(
    "c" * 64, "news", 1, "pi-4", "d" * 64, 2**33, 100.0, REPORT, Verdict.ACCEPTED, reason="", received_s=12.0
)
PLAN = Plan(stages=("canary", "100%"), trial=Trial(seconds=60.0, min_accuracy=0.5))
SIGNATURE = Signature(bytes(range(32)), bytes(range(64)))


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as address:
        yield address


@pytest.fixture(params=["file", "memory", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database of each kind."""
    if request.param == "postgresql":
        return emptied(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path / 'store.sqlite'}" if request.param == "file" else "sqlite://"


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    store = Store(address)
    yield store
    store.close()


@pytest.fixture
def offered(store: Store) -> Store:
    """A store with a task, two devices, and a round in which both were asked."""
    with store.transaction() as tx:
        tx.tasks.add("news", b"{}", 1.0)
        tx.rounds.add(ROUND)
        for device in ("pi-4", "jetson"):
            tx.devices.hello(device, "board", 1, 2.0)
            tx.offers.add(replace(OFFER, device=device))
    return store


# -- what devices may say


def test_words_of_a_device_are_stored_without_the_character_that_postgresql_refuses(offered: Store) -> None:
    with offered.transaction() as tx:
        tx.offers.failed("news", 1, "pi-4", 12.0, failure=Failure.STORAGE, detail="a\0b")
    with offered.reading() as tx:
        assert tx.offers.get("news", 1, "pi-4").detail == "a\ufffdb"


def test_update_of_a_round_whose_number_no_database_holds_is_refused(offered: Store) -> None:
    sent: list[Receipt] = []
    resources = SimpleNamespace(store=offered, send=lambda _, message: sent.append(message))
    entry = BlobEntry(part=Part.WEIGHTS, digest="d" * 64, size_bytes=1)
    words = {"update_id": "c" * 64, "task": "news", "base_version": "b" * 64, "update": entry, "report": REPORT}
    Intake(None, resources).announced("pi-4", UpdateReady(round=2**53, **words), None)
    assert [(receipt.verdict, receipt.refusal) for receipt in sent] == [(Verdict.REJECTED, Refusal.ROUND)]


# -- devices


def test_device_reads_back_what_it_said(store: Store) -> None:
    with store.transaction() as tx:
        assert tx.devices.hello("pi-4", "raspberry-pi-4", 7, 2.5)
        tx.devices.seen("pi-4", 3.5, SNAPSHOT)
        tx.devices.set_memory_factor("pi-4", 0.64)
        tx.devices.set_group("pi-4", "canary")
    with store.reading() as tx:
        device = tx.devices.get("pi-4")
        assert tx.devices.all() == (device,)
    assert (device.profile, device.session, device.online, device.last_seen_s) == ("raspberry-pi-4", 7, True, 3.5)
    assert (device.snapshot, device.memory_factor, device.group) == (SNAPSHOT, 0.64, "canary")


def test_device_keeps_its_memory_factor_and_snapshot_over_a_rebirth(store: Store) -> None:
    with store.transaction() as tx:
        tx.devices.hello("pi-4", "board", 1, 1.0)
        tx.devices.seen("pi-4", 1.0, SNAPSHOT)
        tx.devices.set_memory_factor("pi-4", 0.8)
        tx.devices.hello("pi-4", "board", 2, 2.0)
        tx.devices.seen("pi-4", 3.0)
        device = tx.devices.get("pi-4")
    assert (device.memory_factor, device.snapshot, device.session) == (0.8, SNAPSHOT, 2)


def test_will_of_an_earlier_session_leaves_the_device_online(store: Store) -> None:
    with store.transaction() as tx:
        tx.devices.hello("pi-4", "board", 2, 1.0)
        assert not tx.devices.offline("pi-4", 1)
        assert not tx.devices.hello("pi-4", "older", 1, 2.0)
        assert tx.devices.get("pi-4").online
        assert tx.devices.get("pi-4").profile == "board"
        assert tx.devices.offline("pi-4", 2)
        assert not tx.devices.get("pi-4").online


def test_will_of_an_unknown_device_is_ignored(store: Store) -> None:
    with store.transaction() as tx:
        assert not tx.devices.offline("ghost", 1)
        assert tx.devices.get("ghost") is None


# -- tasks and versions


def test_task_added_twice_keeps_the_first(store: Store) -> None:
    with store.transaction() as tx:
        first = tx.tasks.add("news", b"\x00config", 1.0)
        assert tx.tasks.add("news", b"other", 2.0) == first
        tx.tasks.add("reviews", b"", 0.5)
        tx.tasks.set_status("news", TaskStatus.RUNNING)
        assert tx.tasks.get("news") == replace(first, status=TaskStatus.RUNNING)
        tx.tasks.set_status("news", TaskStatus.FAILED, "no weights in ä")
        assert tx.tasks.get("news") == replace(first, status=TaskStatus.FAILED, failure="no weights in ä")
        tx.tasks.set_status("news", TaskStatus.PENDING)
        assert tx.tasks.get("news") == first
        assert [task.name for task in tx.tasks.all()] == ["reviews", "news"]


def test_versions_read_back_and_the_newest_is_the_latest(store: Store) -> None:
    versions = [VersionRecord("news", number, f"{number:064}", BLOBS, 5.0) for number in range(11)]
    with store.transaction() as tx:
        tx.tasks.add("news", b"", 1.0)
        assert tx.versions.latest("news") is None
        for version in reversed(versions):
            tx.versions.add(version)
        assert tx.versions.latest("news") == versions[10]
        assert tx.versions.get("news", 3) == versions[3]
        assert tx.versions.all("news") == tuple(versions)


def test_version_of_a_task_that_does_not_exist_is_refused(store: Store) -> None:
    with pytest.raises(StorageError, match=r"(?i)foreign key"), store.transaction() as tx:
        tx.versions.add(VersionRecord("nothing", 0, "0" * 64, BLOBS, 5.0))


# -- rounds and offers


def test_decided_round_stays_decided(offered: Store) -> None:
    with offered.transaction() as tx:
        assert tx.rounds.collecting("news") == ROUND
        tx.rounds.decide("news", 1, Phase.CLOSED, 99.0)
        tx.rounds.decide("news", 1, Phase.ABANDONED, 100.0)
        assert tx.rounds.collecting("news") is None
        assert tx.rounds.get("news", 1) == replace(ROUND, phase=Phase.CLOSED, closed_s=99.0)


def test_offer_answered_with_an_update_cannot_fail_any_more(offered: Store) -> None:
    with offered.transaction() as tx:
        tx.offers.failed("news", 1, "pi-4", 20.0, detail="offline")
        tx.offers.updated("news", 1, "pi-4", 30.0, 2**28)
        tx.offers.failed("news", 1, "pi-4", 40.0, failure=Failure.DEADLINE)
        offer = tx.offers.get("news", 1, "pi-4")
    assert (offer.outcome, offer.failure, offer.answered_s) == (Outcome.UPDATED, None, 30.0)
    assert (offer.submodel, offer.peak_memory_bytes) == (HALF, 2**28)


def test_offer_that_failed_says_why(offered: Store) -> None:
    with offered.transaction() as tx:
        tx.offers.failed(
            "news", 1, "pi-4", 20.0, failure=Failure.OUT_OF_MEMORY, detail="at step 3", peak_memory_bytes=5
        )
        failed, open_offer = tx.offers.get("news", 1, "pi-4"), tx.offers.get("news", 1, "jetson")
        assert tx.offers.of_round("news", 1) == (open_offer, failed)
        assert tx.offers.of_device("news", "pi-4") == (failed,)
    assert (failed.failure, failed.detail, failed.peak_memory_bytes) == (Failure.OUT_OF_MEMORY, "at step 3", 5)
    assert open_offer.outcome is Outcome.OFFERED


def test_second_offer_to_a_device_in_a_round_is_refused(offered: Store) -> None:
    with pytest.raises(StorageError, match=r"(?i)unique"), offered.transaction() as tx:
        tx.offers.add(OFFER)


# -- updates


def test_same_update_again_returns_the_earlier_verdict(offered: Store) -> None:
    with offered.transaction() as tx:
        assert tx.updates.add(UPDATE) == UPDATE
    with offered.transaction() as tx:
        assert tx.updates.add(replace(UPDATE, verdict=Verdict.REJECTED, reason="late", received_s=99.0)) == UPDATE
        assert tx.updates.get(UPDATE.update_id) == UPDATE
        assert tx.updates.accepted("news", 1) == (UPDATE,)


def test_other_update_for_a_taken_slot_is_a_duplicate_and_leaves_no_trace(offered: Store) -> None:
    other = replace(UPDATE, update_id="e" * 64, digest="f" * 64)
    with offered.transaction() as tx:
        tx.updates.add(UPDATE)
        assert tx.updates.add(other).verdict is Verdict.REJECTED_DUPLICATE
        assert tx.updates.get(other.update_id) is None
        assert tx.updates.of_round("news", 1) == (UPDATE,)


def test_accepted_updates_come_sorted_by_id_and_without_the_rejected(offered: Store) -> None:
    first = replace(UPDATE, update_id="0" * 64, device="jetson")
    with offered.transaction() as tx:
        tx.devices.hello("phone", "board", 1, 1.0)
        tx.offers.add(replace(OFFER, device="phone"))
        tx.updates.add(UPDATE)
        tx.updates.add(first)
        tx.updates.add(replace(UPDATE, update_id="1" * 64, device="phone", verdict=Verdict.REJECTED, reason="norm"))
        assert tx.updates.accepted("news", 1) == (first, UPDATE)
        assert len(tx.updates.of_round("news", 1)) == 3


def test_update_without_an_offer_is_refused(offered: Store) -> None:
    with pytest.raises(StorageError, match=r"(?i)foreign key"), offered.transaction() as tx:
        tx.updates.add(replace(UPDATE, device="stranger"))


# -- evaluations and releases


def test_evaluation_done_again_replaces_the_earlier(offered: Store) -> None:
    half = EvaluationRecord("news", 0, "half", 500, 0.5, 1.0, 200)
    quarter = EvaluationRecord("news", 0, "quarter", 250, 0.25, 2.0, 200)
    with offered.transaction() as tx:
        for evaluation in (half, quarter, replace(half, accuracy=0.75)):
            tx.evaluations.put(evaluation)
        assert tx.evaluations.of_round("news", 0) == (quarter, replace(half, accuracy=0.75))
        assert tx.evaluations.all("news") == tx.evaluations.of_round("news", 0)


def assigned(tx: Transaction, device: str = "pi-4", rollout: int | None = None, release: int = 1) -> AssignmentRecord:
    status, export = AssignmentStatus.PENDING, ("m1-int8", HALF, BLOBS, 2**40)
    return tx.assignments.add(AssignmentRecord(0, rollout, release, "news", device, 1, *export, status))


def test_release_reads_back_with_its_signatures(offered: Store) -> None:
    with offered.transaction() as tx:
        first, second = (tx.releases.add("news", 3, 5.0) for _ in range(2))
        assert first < second
        tx.releases.describe(second, b"\x00manifest")
        tx.releases.sign(second, (SIGNATURE, SIGNATURE))
    with offered.reading() as tx:
        assert tx.releases.get(second) == ReleaseRecord(second, "news", 3, b"\x00manifest", (SIGNATURE,) * 2, 5.0)
        assert [known.release for known in tx.releases.of_task("news")] == [first, second]
        assert tx.releases.get(99) is None


def test_roots_read_back_and_a_version_is_used_once(store: Store) -> None:
    with store.transaction() as tx:
        assert tx.roots.latest() is None
        for version in (2, 1):
            tx.roots.add(RootRecord(version, b"\x00root", 1.0))
        assert tx.roots.latest() == RootRecord(2, b"\x00root", 1.0)
        assert [root.version for root in tx.roots.all()] == [1, 2]
    with pytest.raises(StorageError), store.transaction() as tx:
        tx.roots.add(RootRecord(2, b"another", 1.0))


def test_rollout_reads_back_as_it_goes_on(offered: Store) -> None:
    with offered.transaction() as tx:
        release = tx.releases.add("news", 3, 5.0)
        known = tx.rollouts.add(release, "news", PLAN, 6.0)
        tx.rollouts.set_status(known.rollout, RolloutStatus.ROLLING_BACK)
        tx.rollouts.set_stage(known.rollout, 1)
        later = tx.rollouts.add(release, "news", PLAN, 7.0)
    with offered.reading() as tx:
        assert tx.rollouts.get(known.rollout) == replace(known, status=RolloutStatus.ROLLING_BACK, stage=1)
        assert tx.rollouts.all() == (replace(known, status=RolloutStatus.ROLLING_BACK, stage=1), later)
        assert tx.rollouts.latest("news") == later
        assert tx.rollouts.newest_ones() == (later,)
        assert tx.rollouts.latest("other") is None


def test_assignment_numbers_rise_and_say_how_devices_stand(offered: Store) -> None:
    report = ReleaseReport(release=1, task="news", healthy=False, detail="slow", standing=Standing.ROLLED_BACK)
    with offered.transaction() as tx:
        rollout = tx.rollouts.add(tx.releases.add("news", 3, 5.0), "news", PLAN, 6.0).rollout
        first, second = assigned(tx, rollout=rollout), assigned(tx)
        tx.assignments.stands(first.number, AssignmentStatus.ROLLED_BACK, "slow", 9.0)
        tx.assignments.reported(first.number, report)
        stood = replace(first, status=AssignmentStatus.ROLLED_BACK, reason="slow", changed_s=9.0, report=report)
        assert first.number < second.number
        assert tx.assignments.get(first.number) == stood
        assert tx.assignments.of_rollout(rollout) == (stood,)
        assert tx.assignments.of_task("news") == (stood, second)
        assert tx.assignments.page_of_task("news", 1, 0) == (stood,)
        assert tx.assignments.page_of_task("news", 9, first.number) == (second,)
        assert tx.assignments.page_of_task("other", 9, 0) == ()


def test_device_runs_the_newest_release_that_is_healthy_there(offered: Store) -> None:
    with offered.transaction() as tx:
        assert tx.assignments.running() == {}
        states = (AssignmentStatus.HEALTHY, AssignmentStatus.HEALTHY, AssignmentStatus.ROLLED_BACK)
        for release, status in enumerate((*states, AssignmentStatus.SENT), start=1):
            tx.assignments.stands(assigned(tx, release=release).number, status, "", 9.0)
        assert tx.assignments.running() == {"pi-4": 2}


def test_what_devices_had_before_there_were_rollouts_is_kept_as_assignments(store: Store) -> None:
    row = {"task": "news", "device": "pi-4", "submodel": "{}", "manifest": "[]", "parameters": 7}
    states = ("sent", "installed", "failed")
    with store.transaction() as tx:
        tx.tasks.add("news", b"", 1.0)
        tx.devices.hello("pi-4", "board", 1, 2.0)
    with store._connection(read_only=False) as connection:
        move_to(connection, "4")
        for status in states:
            columns = [column(name) for name in (*row, "status")]
            connection.execute(insert(table("releases", *columns)), row | {"status": status})
        move_to(connection, HEAD)
        found = connection.execute(text("SELECT number, status, parameters FROM assignments ORDER BY number")).all()
    assert [*map(tuple, found)] == [(1, "sent", 7), (2, "healthy", 7), (3, "rolled-back", 7)]
    with store.transaction() as tx:
        assert assigned(tx).number == 4
    with store._connection(read_only=False) as connection:
        move_to(connection, "4")
        found = connection.execute(text("SELECT release, status FROM releases ORDER BY release")).all()
        move_to(connection, HEAD)
    assert [*map(tuple, found)] == [(1, "sent"), (2, "installed"), (3, "failed"), (4, "sent")]


def test_device_has_one_password_or_none(store: Store) -> None:
    with store.transaction() as tx:
        for device in ("pi-4", "pi-5"):
            tx.devices.hello(device, "board", 1, 1.0)
            tx.passwords.put(PasswordRecord(device, "$7$old", 1.0))
        tx.passwords.put(PasswordRecord("pi-5", "$7$new", 2.0))
        tx.passwords.remove("pi-4")
        tx.passwords.remove("ghost")
    with store.reading() as tx:
        assert tx.passwords.all() == (PasswordRecord("pi-5", "$7$new", 2.0),)


# -- transactions


@pytest.mark.parametrize("address", ["file", "postgresql"], indirect=True)
def test_as_many_look_at_once_as_a_server_has_threads(store: Store) -> None:
    """And none waits for another: one that waited half a minute got a traceback."""
    with ExitStack() as readers:
        for _ in range(45):
            assert readers.enter_context(store.reading()).tasks.all() == ()


def test_who_waits_for_too_many_others_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store("sqlite://")) as store:
        monkeypatch.setattr(store._engine.pool, "_timeout", 0.1)
        with store.reading(), pytest.raises(StorageError, match="is busy"), store.reading():
            pass


# -- totals


def test_totals_count_what_there_is(offered: Store) -> None:
    with offered.transaction() as tx:
        tx.devices.offline("jetson", 1)
        assigned(tx)
        tx.updates.add(UPDATE)
        tx.updates.add(replace(UPDATE, update_id="e" * 64, device="jetson", verdict=Verdict.REJECTED))
        tx.offers.updated("news", 1, "pi-4", 12.0, 1)
        tx.offers.failed("news", 1, "jetson", 12.0, failure=Failure.DEADLINE)
        tx.rounds.decide("news", 1, Phase.CLOSED, 15.5)
        tx.rounds.add(replace(ROUND, number=2))
        tx.offers.add(replace(OFFER, round=2))
    with offered.reading() as tx:
        totals = tx.totals
        assert totals.devices() == {("board", True, False): 1, ("board", False, False): 1}
        assert totals.tasks() == {TaskStatus.PENDING: 1}
        closed, collecting = RoundTotals(1, 1, 15.5), RoundTotals(1, 2, None)
        assert totals.rounds() == {("news", Phase.CLOSED): closed, ("news", Phase.COLLECTING): collecting}
        assert totals.assignments() == {("news", AssignmentStatus.PENDING): 1}
        first = {(Outcome.UPDATED, None): 1, (Outcome.FAILED, Failure.DEADLINE): 1}
        assert totals.offers("news", 0, 1) == first
        assert totals.offers("news", 0, 2) == first | {(Outcome.OFFERED, None): 1}
        assert totals.offers("news", 1, 2) == {(Outcome.OFFERED, None): 1}
        assert totals.updates("news", 0, 2) == dict.fromkeys((Verdict.ACCEPTED, Verdict.REJECTED), (1, 2**33))
        assert totals.updates("news", 1, 2) == totals.offers("views", 0, 2) == {}


def test_totals_tell_a_revoked_device_and_count_its_update_as_it_came(offered: Store) -> None:
    with offered.transaction() as tx:
        tx.updates.add(UPDATE)
        tx.devices.revoke("pi-4", 13.0)
        tx.updates.revoked("news", 1, "pi-4", Refusal.REVOKED.because("gone"))
    with offered.reading() as tx:
        assert tx.totals.devices() == {("board", False, True): 1, ("board", True, False): 1}
        assert tx.totals.updates("news", 0, 2) == {Verdict.ACCEPTED: (1, 2**33)}


def test_device_that_enrols_is_known_before_it_says_hello(store: Store) -> None:
    with store.transaction() as tx:
        tx.devices.enrol("pi", "canary", 5.0)
        enrolled = tx.devices.get("pi")
        tx.devices.hello("pi", "raspberry-pi-5-8gb", 1, 6.0)
        here = tx.devices.get("pi")
    assert (enrolled.has_said_hello, enrolled.online, enrolled.group) == (False, False, "canary")
    assert (here.has_said_hello, here.online, here.group, here.profile) == (True, True, "canary", "raspberry-pi-5-8gb")


def test_revoked_device_comes_back_by_enrolling(store: Store) -> None:
    with store.transaction() as tx:
        tx.devices.hello("pi", "raspberry-pi-5-8gb", 1, 1.0)
        tx.devices.revoke("pi", 2.0)
        gone = tx.devices.get("pi")
        tx.devices.enrol("pi", None, 3.0)
        back = tx.devices.get("pi")
    assert (gone.revoked_s, gone.online) == (2.0, False)
    assert (back.revoked_s, back.group, back.profile) == (None, "default", "raspberry-pi-5-8gb")


def test_enrolment_token_is_found_by_its_digest_and_used_once(store: Store) -> None:
    token = EnrolmentRecord("d" * 64, "pi", None, 1.0, 2.0)
    with store.transaction() as tx:
        tx.enrolments.add(token)
        tx.enrolments.add(EnrolmentRecord("e" * 64, None, "canary", 0.5, 2.0))
        tx.enrolments.used("d" * 64, "pi", 1.5)
        tx.enrolments.remove("e" * 64)
        assert tx.enrolments.of_digest("e" * 64) is None
        assert tx.enrolments.all() == (replace(token, used_s=1.5, used_by="pi"),)


def test_certificates_are_revoked_with_their_device_and_listed_until_they_expire(store: Store) -> None:
    with store.transaction() as tx:
        for device in ("a", "b"):
            tx.devices.enrol(device, None, 0.0)
        for serial, device, expires_s in (("1", "a", 10.0), ("2", "a", 20.0), ("3", "b", 20.0)):
            tx.certificates.add(CertificateRecord(serial, device, float(serial), expires_s, b"der"))
        tx.certificates.revoke("a", 5.0)
        tx.certificates.revoke("a", 6.0)
        assert [known.revoked_s for known in tx.certificates.of_device("a")] == [5.0, 5.0]
        assert tx.certificates.revoked(9.0) == ("1", "2")
        assert tx.certificates.revoked(15.0) == ("2",)
        known = tx.certificates.get("3")
    assert known == CertificateRecord("3", "b", 3.0, 20.0, b"der")


def test_update_of_a_revoked_device_counts_no_more(offered: Store) -> None:
    with offered.transaction() as tx:
        tx.updates.add(UPDATE)
        tx.offers.updated("news", 1, "pi-4", 2.0, 10)
        tx.offers.revoked("news", 1, "pi-4", 3.0, "revoked")
        tx.updates.revoked("news", 1, "pi-4", "revoked")
        offer, known = tx.offers.get("news", 1, "pi-4"), tx.updates.get(UPDATE.update_id)
        assert tx.updates.accepted("news", 1) == ()
    assert (offer.outcome, offer.detail) == (Outcome.FAILED, "revoked")
    assert (known.verdict, known.reason) == (Verdict.REJECTED, "revoked")


def test_round_is_unaggregated_until_its_version_is_there(offered: Store) -> None:
    with offered.transaction() as tx:
        first = tx.unaggregated("news")
        tx.rounds.decide("news", 1, Phase.CLOSED, 2.0)
        tx.rounds.abandon("news", 1)
        abandoned = tx.rounds.get("news", 1)
        tx.versions.add(VersionRecord("news", 1, "v", (), 3.0))
        assert tx.unaggregated("news") is None
    assert (first.number, abandoned.phase) == (1, Phase.ABANDONED)


def test_transaction_that_raises_leaves_nothing(offered: Store) -> None:
    def close_and_fail() -> None:
        with offered.transaction() as tx:
            tx.updates.add(UPDATE)
            tx.offers.updated("news", 1, "pi-4", 30.0, 1)
            tx.rounds.decide("news", 1, Phase.CLOSED, 30.0)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        close_and_fail()
    with offered.reading() as tx:
        assert tx.updates.get(UPDATE.update_id) is None
        assert tx.offers.get("news", 1, "pi-4").outcome is Outcome.OFFERED
        assert tx.rounds.collecting("news") == ROUND


def test_threads_that_count_together_lose_nothing(store: Store) -> None:
    with store.transaction() as tx:
        tx.devices.hello("pi-4", "board", 0, 0.0)

    def count() -> None:
        for _ in range(20):
            with store.transaction() as tx:
                tx.devices.set_memory_factor("pi-4", tx.devices.get("pi-4").memory_factor + 1)

    threads = [threading.Thread(target=count) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.reading() as tx:
        assert tx.devices.get("pi-4").memory_factor == 101


@pytest.mark.parametrize("address", ["file", "postgresql"], indirect=True)
def test_reader_sees_one_moment_while_a_writer_goes_on(store: Store) -> None:
    with store.reading() as reader:
        assert reader.tasks.all() == ()
        with store.transaction() as tx:
            tx.tasks.add("news", b"", 1.0)
        assert reader.tasks.all() == ()
    with store.reading() as reader:
        assert len(reader.tasks.all()) == 1


def test_commit_that_need_not_be_durable_is_seen_at_once(store: Store) -> None:
    with store.transaction(durable=False) as tx:
        tx.tasks.add("news", b"", 1.0)
    with store.reading() as reader:
        assert len(reader.tasks.all()) == 1


# -- migrations


def test_migrations_make_the_tables_that_the_code_knows(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._engine.connect() as connection, connection.begin():
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata) == []


def test_schema_goes_down_to_nothing_and_up_again(store: Store) -> None:
    with store._connection(read_only=False) as connection:
        move_to(connection, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
        assert revision_of(connection) is None
        move_to(connection, HEAD)
        assert revision_of(connection) == HEAD
    with store.transaction() as tx:
        tx.tasks.add("news", b"", 1.0)


def test_task_keeps_all_but_its_reason_where_the_schema_goes_back(store: Store) -> None:
    with store.transaction() as tx:
        known = tx.tasks.add("news", b"", 1.0)
        tx.tasks.set_status("news", TaskStatus.FAILED, "no weights")
    with store._connection(read_only=False) as connection:
        move_to(connection, "6")
        assert "failure" not in {found["name"] for found in inspect(connection).get_columns("tasks")}
        move_to(connection, HEAD)
    with store.reading() as tx:
        assert tx.tasks.get("news") == replace(known, status=TaskStatus.FAILED)


def test_limits_keep_their_values_under_the_names_that_they_had_before(store: Store) -> None:
    config = b'{"name":"news","data":{"labels":["least_examples"],"min_examples":50}}'
    with store.transaction() as tx:
        tx.tasks.add("news", config, 1.0)
        rollout = tx.rollouts.add(tx.releases.add("news", 1, 1.0), "news", PLAN, 6.0).rollout
    with store._connection(read_only=False) as connection:
        move_to(connection, "9")
        before = connection.execute(text("SELECT config FROM tasks")).scalar_one()
        assert bytes(before) == config.replace(b'"min_examples":', b'"least_examples":')
        plan = connection.execute(text("SELECT plan FROM rollouts")).scalar_one()
        assert '"least_accuracy":0.5' in plan
        move_to(connection, HEAD)
    with store.reading() as tx:
        assert tx.tasks.get("news").config == config
        assert tx.rollouts.get(rollout).plan == PLAN


def test_newest_revision_is_the_one_that_a_store_is_brought_to() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(migrations.__path__[0]).get_heads() == [HEAD]


@pytest.mark.parametrize("address", ["file", "postgresql"], indirect=True)
def test_store_that_is_looked_into_stays_as_it_is(address: str) -> None:
    looking = Store(address, upgrade=False)
    assert looking.revision() is None
    older = Store(address)
    with older._connection(read_only=False) as connection:
        move_to(connection, "1")
    assert looking.revision() == "1"
    older.close()
    looking.close()


def test_numbers_that_are_skipped_are_never_given(offered: Store) -> None:
    def release() -> int:
        with offered.transaction() as tx:
            return tx.releases.add("news", 1, 1.0)

    offered.skip_numbers(10)
    assert release() == 11
    offered.skip_numbers(1000)
    assert [release(), release()] == [1012, 1013]


# -- moving


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder whose store has a row in every table."""
    folder = tmp_path / "state"
    store = open_store(folder)
    with store.transaction() as tx:
        tx.tasks.add("news", b"\x00config", 1.0)
        tx.versions.add(VersionRecord("news", 0, "0" * 64, BLOBS, 5.0))
        tx.rounds.add(ROUND)
        tx.devices.hello("pi-4", "board", 2**47, 2.0)
        tx.devices.seen("pi-4", 3.0, SNAPSHOT)
        tx.offers.add(OFFER)
        tx.updates.add(UPDATE)
        tx.evaluations.put(EvaluationRecord("news", 0, "half", 2**40, 0.5, 1.0, 200))
        for _ in range(3):
            release = tx.releases.add("news", 1, 1.0)
        assigned(tx, rollout=tx.rollouts.add(release, "news", PLAN, 6.0).rollout)
        tx.roots.add(RootRecord(1, b"\x00root", 1.0))
    store.close()
    return folder


def everything(folder: Path) -> tuple[object, ...]:
    store = open_store(folder)
    with store.reading() as tx:
        found = (
            *(tx.devices.all(), tx.tasks.all(), tx.versions.all("news"), tx.rounds.all("news")),
            *(tx.offers.of_round("news", 1), tx.updates.of_round("news", 1)),
            *(tx.evaluations.all("news"), tx.releases.of_task("news"), tx.roots.all()),
            *(tx.rollouts.all(), tx.assignments.of_task("news")),
        )
    store.close()
    return found


def test_store_moves_to_another_database_with_all_that_it_has(state: Path, postgres: str) -> None:
    before = everything(state)
    store = open_store(state)
    store.skip_numbers(100)
    store.close()
    assert move_store(state, emptied(postgres)) == 13
    (state / "coordinator.sqlite").unlink()
    assert everything(state) == before
    assert not (state / "coordinator.sqlite").exists()
    assert (state / "store.url").stat().st_mode & 0o077 == 0
    store = open_store(state)
    with store.transaction() as tx:
        assert tx.releases.add("news", 1, 1.0) == 104
    store.close()


@pytest.mark.parametrize("address", ["file", "postgresql"], indirect=True)
def test_store_moves_only_to_an_empty_database(state: Path, address: str) -> None:
    other = Store(address)
    with other.transaction() as tx:
        tx.tasks.add("theirs", b"", 1.0)
    other.close()
    before = everything(state)
    with pytest.raises(StorageError, match=r"is not empty \(it has tasks\)"):
        move_store(state, address)
    assert everything(state) == before
    assert not (state / "store.url").exists()


def test_store_that_a_coordinator_serves_is_not_moved(state: Path) -> None:
    other = f"sqlite:///{state / 'other.sqlite'}"
    with sole_user(state), pytest.raises(StateInUseError, match="another coordinator: stop it first"):
        move_store(state, other)
    move_store(state, other)


def test_store_that_moved_to_a_file_near_by_is_found_from_everywhere(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next command would make an empty one wherever it stands."""
    before = everything(state)
    monkeypatch.chdir(tmp_path)
    move_store(state, "sqlite:///other.sqlite")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert everything(state) == before
    assert not any((tmp_path / "elsewhere").iterdir())


def test_state_folder_is_served_while_somebody_is_its_sole_user(tmp_path: Path) -> None:
    assert not is_served(tmp_path)
    assert not any(tmp_path.iterdir())
    with sole_user(tmp_path):
        assert is_served(tmp_path)
    assert not is_served(tmp_path)
    with sole_user(tmp_path):
        pass


def test_state_folder_without_a_store_is_not_looked_into(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no store"):
        look_into(tmp_path / "state")
    assert not any(tmp_path.iterdir())


def test_store_is_not_moved_to_where_nothing_stays(state: Path) -> None:
    with pytest.raises(ConfigurationError, match="is lost when its process ends"):
        move_store(state, "sqlite://")


@pytest.mark.parametrize("url", ["mysql://host/name", "no address", "mongodb://host"])
def test_database_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="use sqlite:///FILE or postgresql"):
        Store(url)


def test_password_of_a_database_is_not_said() -> None:
    with pytest.raises(StorageError) as caught:
        Store("postgresql+psycopg://user:hush-hush@127.0.0.1:1/name")
    assert "hush-hush" not in str(caught.value)
    assert "\n" not in str(caught.value)
