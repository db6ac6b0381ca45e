"""Why a task failed, in one line for the operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from coordinator.store.database import Transaction
from coordinator.store.records import OfferRecord, RoundRecord
from coordinator.store.states import Outcome
from edge_sdk.decoding import brief
from edge_sdk.errors import VISIBLE, RaffmError
from edge_sdk.logs import because

MAX_CHARACTERS = 1000


def words_of(error: Exception) -> str:
    """An error in the words that the store keeps; one that a library raised is named by its type."""
    if isinstance(error, RaffmError):
        return str(error)[:MAX_CHARACTERS]
    return because(type(error).__name__, brief(error).translate(VISIBLE))


def why_abandoned(tx: Transaction, abandoned: Sequence[RoundRecord]) -> str:
    """Why devices did not deliver in the rounds that were abandoned, the most frequent reason first."""
    offers = [offer for one in abandoned for offer in tx.offers.of_round(one.task, one.number)]
    updated = Counter(offer.round for offer in offers if offer.outcome is Outcome.UPDATED)
    if all(updated[one.number] >= one.quorum for one in abandoned):
        words = f"its last {len(abandoned)} rounds made models whose loss is not a number"
        return f"{words}: lower the learning rate, or admit only smaller updates"
    causes = Counter(_cause(offer) for offer in offers if offer.outcome is not Outcome.UPDATED)
    found = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    words = f"its last {len(abandoned)} rounds had too few updates ({found or 'nobody was asked'})"
    return words.translate(VISIBLE)[:MAX_CHARACTERS]


def _cause(offer: OfferRecord) -> str:
    if offer.failure is not None:
        return offer.failure.value
    return offer.detail[:60] if offer.outcome is Outcome.FAILED and offer.detail else "no answer in time"
