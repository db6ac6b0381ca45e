"""When to look at the device, and what a look means for the work under way.

Pure: :mod:`edge_sdk.supervisor` brings the time and the moment, and does what is ordered. The promise is that nothing
runs longer than ``STOP_WITHIN_S`` against the policy: a look at least every ``LOOK_EVERY_S``, half a second until the
loop comes by, the same once more where what the link costs is not answered within the 0.2 s that a look waits, and two
and a half in which a training process ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.device.policy import Denied, Moment, Policy, may_begin, may_train, may_transfer

STOP_WITHIN_S = 5.0
LOOK_EVERY_S = 0.6


@dataclass(frozen=True, slots=True)
class Orders:
    """What the policy says now: why to end the work under way, and why to let no blob move; ``None``: go on."""

    end_work: Denied | None
    hold_blobs: Denied | None


class Watch:
    """Keeps one device to one policy."""

    def __init__(self, policy: Policy, *, every_s: float = LOOK_EVERY_S) -> None:
        self._policy = policy
        self._every_s = every_s
        self._due_s = 0.0

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to look; ``now_s`` is a monotonic clock's."""
        return now_s >= self._due_s

    def hurry(self) -> None:
        """Something was used up: look at once."""
        self._due_s = 0.0

    def look(self, now_s: float, moment: Moment, *, fetching: bool, training: bool) -> Orders:
        """What the policy orders at this moment, while blobs are fetched for training, or it runs, or neither."""
        self._due_s = now_s + self._every_s
        end_work = None
        if training:
            end_work = may_train(self._policy, moment)
        elif fetching:
            end_work = may_begin(self._policy, moment)
        return Orders(end_work, may_transfer(self._policy, moment))
