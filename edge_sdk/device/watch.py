"""When to check the policy, and what the answer means for the current work.

Pure: the agent's supervisor passes in the time and the moment, and carries the orders out. The promise is that nothing
runs against the policy for longer than ``STOP_WITHIN_S``. The worst case adds up: ``LOOK_EVERY_S`` until a look is due,
half a second until the loop comes round, both once more if the question whether the link is metered is not answered
within the 0.2 s that a look waits for it, and 2.5 s in which a training process ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.device.policy import Denied, Moment, Policy, may_begin, may_train, may_transfer

STOP_WITHIN_S = 5.0
LOOK_EVERY_S = 0.6


@dataclass(frozen=True, slots=True)
class Orders:
    """Why to end the current work, and why to move no blobs; ``None`` where the policy allows it."""

    end_work: Denied | None
    hold_blobs: Denied | None


class Watch:
    """Checks one device against one policy, from time to time."""

    def __init__(self, policy: Policy, *, every_s: float = LOOK_EVERY_S) -> None:
        self._policy = policy
        self._every_s = every_s
        self._due_s = 0.0

    def is_due(self, now_s: float) -> bool:
        """Whether a look is due; ``now_s`` is a monotonic clock's."""
        return now_s >= self._due_s

    def hurry(self) -> None:
        """A budget was used up: a look is due at once."""
        self._due_s = 0.0

    def look(self, now_s: float, moment: Moment, *, fetching: bool, training: bool) -> Orders:
        """What the policy orders at ``moment``, while the device fetches to train, trains, or does neither."""
        self._due_s = now_s + self._every_s
        end_work = None
        if training:
            end_work = may_train(self._policy, moment)
        elif fetching:
            end_work = may_begin(self._policy, moment)
        return Orders(end_work, may_transfer(self._policy, moment))
