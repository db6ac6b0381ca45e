"""One-time tokens for enrolment."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import EnrolmentRecord
from coordinator.store.repository import Repository


class Enrolments(Repository[EnrolmentRecord]):
    """Tokens by the digest of their secret; the secret itself is not stored."""

    table = tables.enrolments
    record = EnrolmentRecord

    def add(self, token: EnrolmentRecord) -> None:
        """Add a token; its digest must be free."""
        self._insert(token)

    def used(self, digest: str, device: str, now_s: float) -> None:
        """Record that a device has enrolled with the token, which is worthless from then on."""
        self._update({"digest": digest}, used_s=now_s, used_by=device)

    def remove(self, digest: str) -> None:
        """Delete a token, so that nobody can enrol with it."""
        self._delete(digest=digest)

    def of_digest(self, digest: str) -> EnrolmentRecord | None:
        """The token with this digest, or ``None`` if there is none."""
        return self._one(digest=digest)

    def all(self) -> tuple[EnrolmentRecord, ...]:
        """Every token, oldest first."""
        return self._all("created_s")
