"""The states that are stored by name: renaming one is a migration."""

from __future__ import annotations

from enum import Enum

DEFAULT_GROUP = "default"
"""Where a device is that nobody put elsewhere."""


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


class ReleaseStatus(str, Enum):
    """What is known of a release on its device."""

    SENT = "sent"
    INSTALLED = "installed"
    FAILED = "failed"


class AccessRole(str, Enum):
    """What a token's bearer may do, each more than the one before: look; change tasks; give tokens."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: AccessRole) -> bool:
        """Whether who has this role may do what ``other`` may."""
        order = tuple(AccessRole)
        return order.index(self) >= order.index(other)
