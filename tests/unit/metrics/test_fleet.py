"""The fleet's metrics over a real store: what is counted, that counts only rise, and that there are few series."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from coordinator.api.access import make_token
from coordinator.api.app import create_app
from coordinator.fleet.revocation import revoke_device
from coordinator.metrics.fleet import MAX_PROFILES, MAX_TASKS, FleetCollector
from coordinator.store.database import Store, Transaction
from coordinator.store.migrations import HEAD
from coordinator.store.records import (
    AssignmentRecord,
    EvaluationRecord,
    OfferRecord,
    RoundRecord,
    UpdateRecord,
    VersionRecord,
)
from coordinator.store.states import AccessRole, AssignmentStatus, Outcome, Phase, TaskStatus
from coordinator.store.totals import Totals
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import Failure, TrainingReport, Verdict

REPORT = TrainingReport(
    samples=1, steps=1, loss_first=1, loss_last=1, seconds=1, peak_memory_bytes=1, downloaded_bytes=1, uploaded_bytes=1
)
WHOLE = Submodel((0,), (1,), (1,))
Figures = dict[tuple[str, ...], float]
"""By name, then the values of the labels in the order of their names."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    yield opened
    opened.close()


def figures(collector: FleetCollector) -> Figures:
    samples = [sample for metric in collector.collect() for sample in metric.samples]
    found = {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value for sample in samples
    }
    assert len(found) == len(samples)
    return found


def open_round(tx: Transaction, number: int, outcomes: dict[str, tuple[Outcome, Failure | None]]) -> None:
    tx.rounds.add(RoundRecord("news", number, "b" * 64, Phase.COLLECTING, 1, 10.0, 20.0))
    for device, (outcome, failure) in outcomes.items():
        tx.offers.add(OfferRecord("news", number, device, WHOLE, 1, 11.0, outcome, failure))


def deliver(tx: Transaction, number: int, device: str, verdict: Verdict, size_bytes: int) -> None:
    name, digest = f"{number}{device}", "d" * 64
    record = UpdateRecord(name, "news", number, device, digest, size_bytes, 1.0, REPORT, verdict, "", 12.0)
    tx.updates.add(record)


@pytest.fixture
def news(store: Store) -> Store:
    """A task with a closed round, an abandoned one and one that collects."""
    with store.transaction() as tx:
        for device in ("a", "b", "c", "d"):
            tx.devices.hello(device, "board" if device != "d" else "phone", 1, 1.0)
        tx.devices.offline("b", 1)
        tx.tasks.add("news", b"{}", 1.0)
        tx.tasks.set_status("news", TaskStatus.RUNNING)
        failed = (Outcome.FAILED, Failure.OUT_OF_MEMORY)
        open_round(tx, 1, {"a": (Outcome.UPDATED, None), "b": failed, "c": (Outcome.OFFERED, None)})
        deliver(tx, 1, "a", Verdict.ACCEPTED, 100)
        tx.rounds.decide("news", 1, Phase.CLOSED, 15.0)
        for number in (0, 1):
            tx.versions.add(VersionRecord("news", number, f"{number}" * 64, (), 1.0))
            tx.evaluations.put(EvaluationRecord("news", number, "full", 10, 0.5 + number / 4, 1.0, 100))
        open_round(tx, 2, {"a": (Outcome.FAILED, None), "d": (Outcome.PAUSED, Failure.POLICY)})
        deliver(tx, 2, "a", Verdict.REJECTED, 7)
        tx.rounds.decide("news", 2, Phase.ABANDONED, 25.0)
        open_round(tx, 3, {"a": (Outcome.OFFERED, None), "c": (Outcome.UPDATED, None)})
        deliver(tx, 3, "c", Verdict.ACCEPTED, 50)
    return store


def test_figures_are_those_of_the_store(news: Store) -> None:
    found = figures(FleetCollector(news))
    for expected in (
        {("raffm_store_schema_revision",): float(HEAD)},
        {("raffm_devices", "board", "online"): 2, ("raffm_devices", "board", "offline"): 1},
        {("raffm_devices", "phone", "online"): 1, ("raffm_devices", "phone", "offline"): 0},
        {("raffm_tasks", "running"): 1, ("raffm_tasks", "failed"): 0},
        {("raffm_rounds_total", "closed", "news"): 1, ("raffm_rounds_total", "abandoned", "news"): 1},
        {("raffm_open_rounds", "news"): 1, ("raffm_last_round_closed_timestamp_seconds", "news"): 15},
        {("raffm_task_version", "news"): 1, ("raffm_task_accuracy_ratio", "news", "full"): 0.75},
        {("raffm_offers_total", end, "news"): 1 for end in ("updated", "unanswered", "paused")},
        {("raffm_offers_total", "failed", "news"): 2, ("raffm_open_offers", "offered", "news"): 1},
        {("raffm_open_offers", "updated", "news"): 1, ("raffm_open_offers", "failed", "news"): 0},
        {("raffm_offer_failures_total", why, "news"): 1 for why in ("out-of-memory", "policy", "other")},
        {("raffm_offer_failures_total", "training", "news"): 0, ("raffm_releases", "healthy", "news"): 0},
        {("raffm_updates_total", "news", "accepted"): 2, ("raffm_updates_total", "news", "rejected"): 1},
        {("raffm_update_bytes_total", "news", "accepted"): 150, ("raffm_update_bytes_total", "news", "rejected"): 7},
    ):
        assert {key: found[key] for key in expected} == expected


def test_what_is_counted_as_it_comes_is_what_is_counted_at_once(news: Store) -> None:
    watching = FleetCollector(news)
    before = figures(watching)
    with news.transaction() as tx:
        deliver(tx, 3, "a", Verdict.REJECTED, 9)
        tx.offers.failed("news", 3, "a", 13.0)
    between = figures(watching)
    with news.transaction() as tx:
        tx.rounds.decide("news", 3, Phase.CLOSED, 35.0)
    closing = figures(watching)
    with news.transaction() as tx:
        tx.versions.add(VersionRecord("news", 3, "3" * 64, (), 36.0))
    after = figures(watching)
    assert after == figures(FleetCollector(news))
    assert after["raffm_offers_total", "updated", "news"] == 2
    assert after["raffm_update_bytes_total", "news", "rejected"] == 16
    assert after["raffm_open_offers", "updated", "news"] == 0
    for earlier, later in ((before, between), (between, closing), (closing, after)):
        fallen = [key for key in earlier if key[0].endswith("_total") and later[key] < earlier[key]]
        assert not fallen


def test_revocation_makes_no_counter_fall(news: Store) -> None:
    """Prometheus takes a counter that falls for one that began anew, and counts all of it again."""
    before = figures(FleetCollector(news))
    revoke_device(news, "c", 30.0, "a test")
    after = figures(FleetCollector(news))
    assert not [key for key in before if key[0].endswith("_total") and after[key] < before[key]]


def test_closed_round_that_is_abandoned_makes_no_counter_fall(news: Store) -> None:
    """As where the loss of its model is not a number, or where revoked devices leave it without a quorum."""
    watching = FleetCollector(news)
    with news.transaction() as tx:
        tx.rounds.decide("news", 3, Phase.CLOSED, 35.0)
    before = figures(watching)
    revoke_device(news, "c", 36.0, "a test")
    with news.transaction() as tx:
        tx.rounds.abandon("news", 3)
    after = figures(watching)
    assert not [key for key in before if key[0].endswith("_total") and after[key] < before[key]]
    assert after == figures(FleetCollector(news))
    assert (after["raffm_rounds_total", "closed", "news"], after["raffm_rounds_total", "abandoned", "news"]) == (1, 2)


def test_revoked_devices_are_not_among_those_to_look_after(news: Store) -> None:
    revoke_device(news, "b", 30.0, "a test")
    found = figures(FleetCollector(news))
    assert (found["raffm_devices", "board", "offline"], found["raffm_devices", "board", "revoked"]) == (0, 1)


def test_model_that_another_has_taken_the_place_of_is_counted_no_more(news: Store) -> None:
    first = AssignmentRecord(0, None, 1, "news", "a", 0, "m", WHOLE, (), 1, AssignmentStatus.FAILED, "", None, 1.0)
    with news.transaction() as tx:
        tx.assignments.add(first)
        tx.assignments.add(replace(first, device="b"))
        tx.assignments.add(replace(first, release=2, status=AssignmentStatus.HEALTHY))
    found = figures(FleetCollector(news))
    assert (found["raffm_releases", "failed", "news"], found["raffm_releases", "healthy", "news"]) == (1, 1)


def test_series_stay_few_however_many_devices_there_are(store: Store) -> None:
    with store.transaction() as tx:
        for number in range(3 * MAX_PROFILES):
            tx.devices.hello(f"device-{number}", f"made-up-{number}", 1, 1.0)
        for number in range(7):
            tx.devices.hello(f"pi-{number}", "raspberry-pi-5-8gb", 1, 1.0)
        for number in range(MAX_TASKS + 5):
            tx.tasks.add(f"task-{number:03}", b"{}", float(number))
    found = figures(FleetCollector(store))
    profiles = {key[1] for key in found if key[0] == "raffm_devices"}
    assert len(profiles) == MAX_PROFILES + 1
    assert found["raffm_devices", "raspberry-pi-5-8gb", "online"] == 7
    assert found["raffm_devices", "other", "online"] == 2 * MAX_PROFILES + 1
    tasks = {key[-1] for key in found if key[0] == "raffm_open_rounds"}
    assert tasks == {f"task-{number:03}" for number in range(5, MAX_TASKS + 5)}
    assert found["raffm_tasks", "pending"] == MAX_TASKS + 5
    names = [value for key in found for value in key]
    assert not [value for value in names if value.startswith(("device-", "pi-"))]


def test_only_a_token_shows_the_metrics(news: Store) -> None:
    with TestClient(create_app(news)) as client:
        assert client.get("/metrics").status_code == 401
        secret = make_token(news, "prometheus", AccessRole.VIEWER, None, time.time(), "a test")
        answer = client.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = {family.name: family.type for family in text_string_to_metric_families(answer.text)}
    assert (found["raffm_updates"], found["raffm_devices"]) == ("counter", "gauge")
    assert "process_resident_memory_bytes" in found
    assert secret not in answer.text


def test_store_that_is_gone_is_said(news: Store, tmp_path: Path) -> None:
    """Prometheus calls a target down that does not answer with 200; figures of nothing would look well."""
    secret = make_token(news, "prometheus", AccessRole.VIEWER, None, time.time(), "a test")
    news.close()
    (tmp_path / "store.sqlite").write_bytes(b"not a database at all" * 1000)
    with TestClient(create_app(news), raise_server_exceptions=False) as client:
        assert client.get("/metrics", headers={"Authorization": f"Bearer {secret}"}).status_code == 503


def test_offers_of_decided_rounds_are_read_once(news: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    watching, asked = FleetCollector(news), list[tuple[int, int]]()
    figures(watching)
    offers = Totals.offers

    def noted(self: Totals, task: str, after: int, until: int) -> object:
        asked.append((after, until))
        return offers(self, task, after, until)

    monkeypatch.setattr(Totals, "offers", noted)
    figures(watching)
    assert [after for after, _ in asked] == [2]
