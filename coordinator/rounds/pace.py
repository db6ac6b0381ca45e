"""How fast the devices of a round were, by which the next round is planned."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.planning.budget import Pace, late_pace, measured_pace
from coordinator.planning.planner import TaskCosts
from coordinator.store.database import Transaction
from coordinator.store.records import RoundRecord
from coordinator.store.states import Outcome
from edge_sdk.protocol.messages import Failure

_ROUNDING_S = 1.0  # between the clock that ends a round and the one that says when


def paces_of_round(
    tx: Transaction, known: RoundRecord, costs: TaskCosts, before: Mapping[str, Pace]
) -> dict[str, Pace]:
    """The pace of each device whose update the round accepted, or that was not done by the deadline.

    ``before`` are those of earlier rounds. Whoever paused, failed or went offline has shown nothing, and
    neither has a device that had not answered when its round was stopped.
    """
    is_timed_out = known.closed_s is None or known.closed_s >= known.deadline_s - _ROUNDING_S
    reports = {update.device: update.report for update in tx.updates.accepted(known.task, known.number)}
    found: dict[str, Pace | None] = {}
    for offer in tx.offers.of_round(known.task, known.number):
        flops, device = costs.training_flops(offer.submodel), offer.device
        if device in reports:
            found[device] = measured_pace(reports[device], costs.recipe, flops)
        elif (offer.outcome is Outcome.OFFERED and is_timed_out) or offer.failure is Failure.DEADLINE:
            seconds = known.deadline_s - known.opened_s
            found[device] = late_pace(before.get(device), costs.recipe, flops, seconds)
    return {device: pace for device, pace in found.items() if pace is not None}
