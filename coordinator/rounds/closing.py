"""Which updates a closed round is aggregated from, and how the resulting version is stored."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from coordinator.aggregation.coverage import UpdateSource
from coordinator.models.versions import ModelVersion
from coordinator.store.database import Transaction
from coordinator.store.records import EvaluationRecord, VersionRecord
from edge_sdk.transport.blob_folder import BlobFolder

if TYPE_CHECKING:
    from coordinator.models.run import Run, WidthResult

_log = logging.getLogger(__name__)


def sources_of(tx: Transaction, run: Run, blobs: BlobFolder, number: int) -> list[UpdateSource]:
    """Every update that a round counts, by id."""
    task = run.config.name
    submodels = {offer.device: offer.submodel for offer in tx.offers.of_round(task, number)}
    return [
        UpdateSource(
            update.update_id,
            update.weight,
            run.trained_slices(submodels[update.device]),
            blobs.path_of(update.digest),
            update.report.encoding,
        )
        for update in tx.updates.accepted(task, number)
    ]


def still_count(tx: Transaction, task: str, number: int, sources: Sequence[UpdateSource]) -> bool:
    """Whether a round still counts exactly these updates: a device may have been revoked since."""
    return [known.update_id for known in tx.updates.accepted(task, number)] == [source.update_id for source in sources]


def is_sound(results: Sequence[WidthResult]) -> bool:
    """Whether the losses of a model are finite; finite updates may still add up to a model whose losses are not."""
    return all(math.isfinite(result.evaluation.loss) for result in results)


def keep_version(tx: Transaction, task: str, version: ModelVersion, results: Sequence[WidthResult]) -> None:
    """Store a version, and its evaluation by width."""
    tx.versions.add(VersionRecord(task, version.number, version.digest, version.blobs, time.time()))
    for result in results:
        found = result.evaluation
        tx.evaluations.put(
            EvaluationRecord(
                task, version.number, result.width, result.parameters, found.accuracy, found.loss, found.samples
            )
        )
    shown = ", ".join(f"{result.width} {100 * result.evaluation.accuracy:.1f} %" for result in results)
    _log.info("version %d: %s", version.number, shown, extra={"task": task, "round": version.number})
