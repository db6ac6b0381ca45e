"""The open round of a task, rebuilt from the store: a restart reads the last state and continues."""

from __future__ import annotations

from coordinator.rounds.machine import RoundState
from coordinator.store.database import Transaction


def load_round(transaction: Transaction, task: str) -> RoundState | None:
    """The round of ``task`` that is collecting, ``None`` where none is. Raises ``StorageError``."""
    record = transaction.rounds.collecting(task)
    if record is None:
        return None
    return RoundState(
        task=task,
        number=record.number,
        base_version=record.base_version,
        quorum=record.quorum,
        deadline_s=record.deadline_s,
        phase=record.phase,
        offers={offer.device: offer.outcome for offer in transaction.offers.of_round(task, record.number)},
    )
