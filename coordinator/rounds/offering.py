"""Offers: as the store records them, and as messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from coordinator.models.versions import ModelVersion
from coordinator.planning.planner import TrainingPlan
from coordinator.store.records import OfferRecord
from edge_sdk.protocol.messages import BlobEntry, Offer

if TYPE_CHECKING:
    from coordinator.models.run import Run


def record_of(run: Run, device: str, number: int, plan: TrainingPlan, opened_s: float) -> OfferRecord:
    """The record of a device's offer in round ``number``."""
    return OfferRecord(
        run.config.name,
        number,
        device,
        plan.submodel,
        plan.memory_bytes,
        opened_s,
        parameters=run.parameters(plan.submodel),
        micro_batch_size=plan.micro_batch_size,
        max_steps=plan.max_steps,
    )


def offer_of(
    record: OfferRecord, run: Run, version: ModelVersion, manifest: Sequence[BlobEntry], left_s: float
) -> Offer:
    """The message: from ``version``, whose parts are in ``manifest``, within the seconds that are left."""
    config = run.config
    return Offer(
        task=record.task,
        round=record.round,
        base_version=version.digest,
        architecture=run.foundation.architecture,
        submodel=record.submodel,
        nested=run.nested(record.submodel, record.round),
        part=config.part,
        labels=run.foundation.labels,
        recipe=msgspec.structs.replace(
            config.recipe,
            micro_batch_size=record.micro_batch_size,
            max_steps=record.max_steps or config.recipe.max_steps,
        ),
        deadline_s=left_s,
        predicted_memory_bytes=record.predicted_memory_bytes,
        manifest=tuple(manifest),
        encoding=config.offered_encoding,
    )
