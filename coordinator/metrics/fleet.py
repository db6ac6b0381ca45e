"""Metrics of the fleet, read from the store whenever Prometheus asks.

The number of series is bounded, however large a fleet grows: no device has a series of its own. Devices choose their
profile's name themselves, so only the ``MAX_PROFILES`` commonest are named, and all others are ``other``. Operators
create tasks, of which the ``MAX_TASKS`` newest are shown. All other labels have the values of an enum.

A decided round does not change any more. Its figures are counted once and kept in memory, so that a scrape takes no
longer after a year than on the first day, and the counters never fall. A closed round is decided once its version is
made: until then it may still be abandoned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.metrics.families import counter, gauge
from coordinator.store.database import Store, Transaction
from coordinator.store.states import AssignmentStatus, Outcome, Phase, TaskStatus
from coordinator.store.totals import RoundTotals
from edge_sdk.diagnosis.machine import version_of
from edge_sdk.protocol.messages import Failure, Verdict

MAX_PROFILES = 50
MAX_TASKS = 100
_DECIDED = (Phase.CLOSED, Phase.ABANDONED)
_ENDS = {Outcome.OFFERED: "unanswered"}  # the name for an offer whose round was decided without an answer
_OTHER = "other"
_NO_LIMIT = 2**31 - 1
_Rounds = Mapping[tuple[str, Phase], RoundTotals]


def fleet_registry(store: Store) -> CollectorRegistry:
    """The registry of everything that the API shows to Prometheus, including the figures of its own process."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    ProcessCollector(registry=registry)
    return registry


class FleetCollector(Collector):
    """Collects the metrics of one store; thread-safe. Raises ``StorageError`` if the store cannot be read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._decided: dict[str, _Decided] = {}

    def collect(self) -> Iterator[Metric]:
        """All metrics, from one consistent state of the store."""
        revision = self._store.revision() or "0"
        with self._lock, self._store.reading() as tx:
            found = [*_build(revision), *_devices(tx), *self._tasks(tx)]
        return iter(found)

    def _tasks(self, tx: Transaction) -> Iterator[Metric]:
        statuses, names = tx.totals.tasks(), [known.name for known in tx.tasks.all()][-MAX_TASKS:]
        versions = {name: found.number for name in names if (found := tx.versions.latest(name)) is not None}
        rounds = _settled(tx.totals.rounds(), versions)
        yield gauge("raffm_tasks", "Tasks.", {(it.value,): statuses.get(it, 0) for it in TaskStatus}, "status")
        yield from _round_metrics(rounds, names)
        yield from _version_metrics(tx, versions)
        yield from _release_metrics(tx, names)
        for name in names:
            self._decided.setdefault(name, _Decided(name)).go_on(tx, rounds)
        yield from _offer_metrics(tx, rounds, [self._decided[name] for name in names])
        yield from _update_metrics(tx, [self._decided[name] for name in names])


class _Decided:
    """Counts of a task's decided rounds, up to and including round ``until``."""

    def __init__(self, task: str) -> None:
        self.task, self.until = task, 0
        self.offers: Counter[tuple[Outcome, Failure | None]] = Counter()
        self.updates: Counter[Verdict] = Counter()
        self.update_bytes: Counter[Verdict] = Counter()

    def go_on(self, tx: Transaction, rounds: _Rounds) -> None:
        """Add the rounds that have been decided since, up to the newest."""
        until = max((rounds[self.task, phase].newest for phase in _DECIDED if (self.task, phase) in rounds), default=0)
        if until > self.until:
            self.offers.update(tx.totals.offers(self.task, self.until, until))
            for verdict, (count, size_bytes) in tx.totals.updates(self.task, self.until, until).items():
                self.updates[verdict] += count
                self.update_bytes[verdict] += size_bytes
            self.until = until


def _build(revision: str) -> Iterator[Metric]:
    yield InfoMetricFamily("raffm_build", "The API that answers.", {"version": version_of("raffm-edge")})
    yield gauge("raffm_store_schema_revision", "Of the store; a newer coordinator raises it.", {(): float(revision)})


def _devices(tx: Transaction) -> Iterator[Metric]:
    found = tx.totals.devices()
    by_profile: Counter[str] = Counter()
    for (profile, *_), count in found.items():
        by_profile[profile] += count
    named = {profile for profile, _ in sorted(by_profile.items(), key=lambda it: (-it[1], it[0]))[:MAX_PROFILES]}
    samples = {(profile, state): 0 for profile in sorted(named) for state in ("online", "offline")}
    for (profile, online, revoked), count in found.items():
        state = "revoked" if revoked else "online" if online else "offline"
        key = (profile if profile in named else _OTHER, state)
        samples[key] = samples.get(key, 0) + count
    yield gauge("raffm_devices", "Devices that have ever enrolled or said hello.", samples, "profile", "state")


def _settled(rounds: _Rounds, versions: Mapping[str, int]) -> _Rounds:
    """``rounds`` without the closed one of a task, always its newest, whose version is not made yet."""
    return {
        (task, phase): replace(found, count=found.count - 1, newest=found.newest - 1)
        if phase is Phase.CLOSED and found.newest > versions.get(task, 0)
        else found
        for (task, phase), found in rounds.items()
    }


def _round_metrics(rounds: _Rounds, tasks: Sequence[str]) -> Iterator[Metric]:
    def count(task: str, phase: Phase) -> int:
        return rounds[task, phase].count if (task, phase) in rounds else 0

    decided = {(task, phase.value): count(task, phase) for task in tasks for phase in _DECIDED}
    yield counter("raffm_rounds_total", "Rounds that are decided.", decided, "task", "phase")
    collecting = {(task,): count(task, Phase.COLLECTING) for task in tasks}
    yield gauge("raffm_open_rounds", "Rounds that collect updates now.", collecting, "task")
    closed = {task: rounds[task, Phase.CLOSED].closed_s for task in tasks if (task, Phase.CLOSED) in rounds}
    when = {(task,): at_s for task, at_s in closed.items() if at_s is not None}
    yield gauge("raffm_last_round_closed_timestamp_seconds", "When a round was closed last.", when, "task")


def _version_metrics(tx: Transaction, newest: Mapping[str, int]) -> Iterator[Metric]:
    yield gauge("raffm_task_version", "Of the newest model.", {(task,): it for task, it in newest.items()}, "task")
    accuracy = {
        (task, found.width): found.accuracy
        for task, number in newest.items()
        for found in tx.evaluations.of_round(task, number)
    }
    yield gauge("raffm_task_accuracy_ratio", "Of the newest model, cut to a width.", accuracy, "task", "width")


def _release_metrics(tx: Transaction, tasks: Sequence[str]) -> Iterator[Metric]:
    found = tx.totals.assignments()
    samples = {(task, status.value): found.get((task, status), 0) for task in tasks for status in AssignmentStatus}
    yield gauge("raffm_releases", "Models that devices are to run, by how they stand.", samples, "task", "status")


def _offer_metrics(tx: Transaction, rounds: _Rounds, decided: Sequence[_Decided]) -> Iterator[Metric]:
    ends, failures = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    opened = {(known.task, outcome.value): 0 for known in decided for outcome in Outcome}
    for known in decided:
        ends.update({(known.task, _ENDS.get(outcome, outcome.value)): 0 for outcome in Outcome})
        failures.update({(known.task, name): 0 for name in (*(it.value for it in Failure), _OTHER)})
        for (outcome, failure), count in known.offers.items():
            ends[known.task, _ENDS.get(outcome, outcome.value)] += count
            if failure is not None or outcome is Outcome.FAILED:
                failures[known.task, _OTHER if failure is None else failure.value] += count
        if (known.task, Phase.COLLECTING) in rounds:
            for (outcome, _), count in tx.totals.offers(known.task, known.until, _NO_LIMIT).items():
                opened[known.task, outcome.value] += count
    yield gauge("raffm_open_offers", "Offers of the rounds that collect now.", opened, "task", "outcome")
    yield counter("raffm_offers_total", "Offers of decided rounds.", ends, "task", "outcome")
    about = f"Offers of decided rounds without an update, by what the device said; {_OTHER}: offline, or rejected."
    yield counter("raffm_offer_failures_total", about, failures, "task", "failure")


def _update_metrics(tx: Transaction, decided: Sequence[_Decided]) -> Iterator[Metric]:
    counts: dict[tuple[str, ...], float] = {}
    sizes: dict[tuple[str, ...], float] = {}
    for known in decided:
        coming = tx.totals.updates(known.task, known.until, _NO_LIMIT)
        for verdict in (Verdict.ACCEPTED, Verdict.REJECTED):
            count, size_bytes = coming.get(verdict, (0, 0))
            counts[known.task, verdict.value] = known.updates[verdict] + count
            sizes[known.task, verdict.value] = known.update_bytes[verdict] + size_bytes
    yield counter("raffm_updates_total", "Updates that have come, by their verdict.", counts, "task", "verdict")
    yield counter("raffm_update_bytes_total", "Bytes of the updates that have come.", sizes, "task", "verdict")
