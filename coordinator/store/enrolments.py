"""One-time tokens to enrol with."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import EnrolmentRecord
from coordinator.store.repository import Repository


class Enrolments(Repository[EnrolmentRecord]):
    """By digest, which is all that is kept of a token."""

    table = tables.enrolments
    record = EnrolmentRecord

    def add(self, token: EnrolmentRecord) -> None:
        """A new one."""
        self._insert(token)

    def used(self, digest: str, device: str, now_s: float) -> None:
        """It has let this device in, and lets nobody in any more."""
        self._update({"digest": digest}, used_s=now_s, used_by=device)

    def remove(self, digest: str) -> None:
        """It lets nobody in."""
        self._delete(digest=digest)

    def of_digest(self, digest: str) -> EnrolmentRecord | None:
        """The token with this digest, ``None`` where there is none."""
        return self._one(digest=digest)

    def all(self) -> tuple[EnrolmentRecord, ...]:
        """Every token, oldest first."""
        return self._all("created_s")
