"""Which certificates the authority has given to devices."""

from __future__ import annotations

from sqlalchemy import select

from coordinator.store import tables
from coordinator.store.records import CertificateRecord
from coordinator.store.repository import Repository


class Certificates(Repository[CertificateRecord]):
    """By serial number."""

    table = tables.certificates
    record = CertificateRecord

    def add(self, certificate: CertificateRecord) -> None:
        """A new one."""
        self._insert(certificate)

    def revoke(self, device: str, now_s: float) -> None:
        """None that the device has is good any more."""
        for known in self.of_device(device):
            if known.revoked_s is None:
                self._update({"serial": known.serial}, revoked_s=now_s)

    def get(self, serial: str) -> CertificateRecord | None:
        """One, ``None`` where the authority has given none of this number to a device."""
        return self._one(serial=serial)

    def of_device(self, device: str) -> tuple[CertificateRecord, ...]:
        """Every one that a device has had, oldest first."""
        return self._all("issued_s", device=device)

    def revoked(self, now_s: float) -> tuple[str, ...]:
        """The numbers of those that are revoked and would be good else, which a broker has to know."""
        columns = self.table.c
        serials = select(columns.serial).where(columns.revoked_s.is_not(None), columns.expires_s > now_s)
        return tuple(self._connection.execute(serials.order_by(columns.serial)).scalars())
