"""The states that are stored by name; renaming one needs a migration."""

from __future__ import annotations

from enum import Enum

DEFAULT_GROUP = "default"
"""The group of a device that was not put into another."""
NOT_SEEN = "not-seen"
"""The profile of a device that has enrolled but not said hello yet."""


class TaskStatus(str, Enum):
    """Where a task stands, or is to stand: a paused one opens no round, a stopped one ends with what it has."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"


class Phase(str, Enum):
    """Where a round stands; the last two are final."""

    COLLECTING = "collecting"
    CLOSED = "closed"
    ABANDONED = "abandoned"


class Outcome(str, Enum):
    """What became of an offer: no answer yet, put off by the device's owner, an accepted update, or none."""

    OFFERED = "offered"
    PAUSED = "paused"
    UPDATED = "updated"
    FAILED = "failed"


class AssignmentStatus(str, Enum):
    """Where a device stands to a release that it is to run.

    ``FAILED`` is not known to be back on what it ran before, ``ROLLED_BACK`` is.
    """

    PENDING = "pending"
    SENT = "sent"
    TRYING = "trying"
    HEALTHY = "healthy"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"


class RolloutStatus(str, Enum):
    """Where a rollout stands, or is to stand: a halted one goes to nobody any more, but those that have it keep it."""

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    DONE = "done"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"


class AccessRole(str, Enum):
    """What a token's bearer may do, each more than the one before: look; change tasks; give tokens."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: AccessRole) -> bool:
        """Whether who has this role may do what ``other`` may."""
        order = tuple(AccessRole)
        return order.index(self) >= order.index(other)
