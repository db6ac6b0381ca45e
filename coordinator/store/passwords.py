"""The passwords with which the devices of an open fleet log in to its broker."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import PasswordRecord
from coordinator.store.repository import Repository


class Passwords(Repository[PasswordRecord]):
    """Passwords by device, which has at most one."""

    table = tables.passwords
    record = PasswordRecord

    def put(self, password: PasswordRecord) -> None:
        """Set a device's password, replacing any earlier one."""
        self.remove(password.device)
        self._insert(password)

    def remove(self, device: str) -> None:
        """Delete a device's password, if it has one."""
        self._delete(device=device)

    def all(self) -> tuple[PasswordRecord, ...]:
        """Every password, by device."""
        return self._all("device")
