"""What a restart needs: the open round of a task, rebuilt from the store, and the blobs that the store records.

While a coordinator runs, its deadlines are on a clock that nobody sets. The store has them on the wall's, which is all
that two processes share. A wall clock that was set back meanwhile cannot prolong a round: what is left of it is never
more than it had at first. One that was set forward ends it at once, as a coordinator that was away for so long does.
"""

from __future__ import annotations

import logging

from coordinator.config import read_task
from coordinator.delivery.approving import manifest_of
from coordinator.rounds.machine import RoundState
from coordinator.store.database import Transaction
from coordinator.store.records import RoundRecord, TaskRecord

_log = logging.getLogger(__name__)


def load_round(transaction: Transaction, task: str, *, wall_s: float, steady_s: float) -> RoundState | None:
    """The round of ``task`` that is collecting, with its deadline on the steady clock; ``None`` where none is.

    ``wall_s`` and ``steady_s`` are what the two clocks read now. Raises ``StorageError``.
    """
    record = transaction.rounds.collecting(task)
    if record is None:
        return None
    return RoundState(
        task=task,
        number=record.number,
        base_version=record.base_version,
        quorum=record.quorum,
        deadline_s=steady_s + _left_s(record, wall_s),
        phase=record.phase,
        offers={offer.device: offer.outcome for offer in transaction.offers.of_round(task, record.number)},
    )


def recorded_blobs(transaction: Transaction) -> set[str]:
    """The digests without which what the store records cannot go on: of the versions that each task keeps, of its
    releases, and of the updates of a round that is not aggregated yet.
    """  # noqa: D205 - the summary is a list
    needed = set[str]()
    for task in transaction.tasks.all():
        releases, versions = transaction.releases.of_task(task.name), transaction.versions.all(task.name)
        newest_ones = {version.number for version in versions[-_kept(task) :]}
        kept = newest_ones | {known.version for known in releases}
        needed |= {entry.digest for version in versions if version.number in kept for entry in version.blobs}
        exports = (export for known in releases for export in manifest_of(known).exports)
        needed |= {entry.digest for export in exports for entry in export.manifest}
        if (open_round := transaction.unaggregated(task.name)) is not None:
            needed |= {update.digest for update in transaction.updates.accepted(task.name, open_round.number)}
    return needed


def _kept(task: TaskRecord) -> int:
    return read_task(task.config).keep_versions


def _left_s(record: RoundRecord, wall_s: float) -> float:
    if wall_s < record.opened_s:
        _log.warning(
            "the clock was set back by at least %.0f s since round %d opened: its deadline is counted from now",
            record.opened_s - wall_s,
            record.number,
            extra={"task": record.task, "round": record.number},
        )
    return min(max(0.0, record.deadline_s - wall_s), record.deadline_s - record.opened_s)
