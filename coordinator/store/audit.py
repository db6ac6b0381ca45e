"""The audit log: who changed what, and when. An entry is written with its change, and is never changed itself."""

from __future__ import annotations

from sqlalchemy import insert, select

from coordinator.store import tables
from coordinator.store.records import AuditRecord
from coordinator.store.repository import Repository


class Audit(Repository[AuditRecord]):
    """Entries by their number, which always rises."""

    table = tables.audit
    record = AuditRecord

    def note(self, at_s: float, who: str, action: str, subject: str) -> None:
        """Append an entry."""
        self._connection.execute(insert(self.table), {"at_s": at_s, "who": who, "action": action, "subject": subject})

    def newest(self, most: int, before: int | None = None) -> tuple[AuditRecord, ...]:
        """The last ``most`` entries, newest first; only those before the entry ``before`` unless that is ``None``."""
        entries = select(self.table).order_by(self.table.c.entry.desc()).limit(most)
        if before is not None:
            entries = entries.where(self.table.c.entry < before)
        return self._found(entries)
