"""The certificates that the authority has issued to devices."""

from __future__ import annotations

from sqlalchemy import select

from coordinator.store import tables
from coordinator.store.records import CertificateRecord
from coordinator.store.repository import Repository


class Certificates(Repository[CertificateRecord]):
    """Certificates by serial number."""

    table = tables.certificates
    record = CertificateRecord

    def add(self, certificate: CertificateRecord) -> None:
        """Add a certificate; its serial number must be free."""
        self._insert(certificate)

    def revoke(self, device: str, now_s: float) -> None:
        """Revoke every certificate of a device; those that are revoked already keep their time."""
        for known in self.of_device(device):
            if known.revoked_s is None:
                self._update({"serial": known.serial}, revoked_s=now_s)

    def get(self, serial: str) -> CertificateRecord | None:
        """One certificate, or ``None`` if the authority has issued none with this number to a device."""
        return self._one(serial=serial)

    def of_device(self, device: str) -> tuple[CertificateRecord, ...]:
        """Every certificate that a device has had, oldest first."""
        return self._all("issued_s", device=device)

    def revoked(self, now_s: float) -> tuple[str, ...]:
        """The serial numbers of revoked certificates that have not expired, which a broker has to refuse."""
        columns = self.table.c
        serials = select(columns.serial).where(columns.revoked_s.is_not(None), columns.expires_s > now_s)
        return tuple(self._connection.execute(serials.order_by(columns.serial)).scalars())
