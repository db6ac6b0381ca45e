"""What the devices of an open fleet log in to its broker with."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import PasswordRecord
from coordinator.store.repository import Repository


class Passwords(Repository[PasswordRecord]):
    """By device, which has one or none."""

    table = tables.passwords
    record = PasswordRecord

    def put(self, password: PasswordRecord) -> None:
        """The device's from now on, in the place of any other."""
        self.remove(password.device)
        self._insert(password)

    def remove(self, device: str) -> None:
        """The device has none any more."""
        self._delete(device=device)

    def all(self) -> tuple[PasswordRecord, ...]:
        """Every one, by device."""
        return self._all("device")
