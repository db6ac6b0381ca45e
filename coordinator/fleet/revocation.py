"""Revokes devices: the coordinator ignores them, drops their pending updates, and the broker refuses them.

All of that is one transaction, which holds whether or not a coordinator is running. For the broker there follow the
list of revoked certificates, and :mod:`coordinator.fleet.cutting`, which ends the device's open session.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.fleet.devices import known_device
from coordinator.fleet.folder import Fleet
from coordinator.store.database import Store, Transaction
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import Refusal

LIST_FILE = "revoked.pem"
REASON = Refusal.REVOKED.because("the device is of this fleet no more")


def revoke_device(store: Store, device: str, now_s: float, who: str) -> None:
    """Revoke a device, and the tokens by which it could enrol again; doing it again changes nothing.

    Raises ``ConfigurationError`` if there is no such device.
    """
    with store.transaction() as tx:
        if known_device(tx, device).revoked_s is not None:
            return
        tx.devices.revoke(device, now_s)
        tx.certificates.revoke(device, now_s)
        tx.passwords.remove(device)
        for token in tx.enrolments.all():
            if token.device == device and token.used_s is None:
                tx.enrolments.remove(token.digest)
        for task in tx.tasks.all():
            round_record = tx.unaggregated(task.name)
            if round_record is not None:
                drop_from_round(tx, task.name, round_record.number, device, now_s)
        tx.audit.note(now_s, who, "revoke device", device)


def drop_from_round(tx: Transaction, task: str, number: int, device: str, now_s: float) -> None:
    """Record that a revoked device's offer has failed, and that its update is not to be aggregated."""
    if tx.offers.get(task, number, device) is not None:
        tx.offers.revoked(task, number, device, now_s, REASON)
        tx.updates.revoked(task, number, device, REASON)


def list_revoked(store: Store, fleet: Fleet, also: Iterable[x509.Certificate] = ()) -> None:
    """Write the list for the broker: every revoked certificate that has not expired, and those in ``also``."""
    path = fleet.broker_dir / LIST_FILE
    with fleet.alone(), disk_errors(path):
        now_s = time.time()
        with store.reading() as tx:
            serials = {int(serial, 16) for serial in tx.certificates.revoked(now_s)}
        number, after = _last(path) if path.exists() else (0, None)
        serials |= {certificate.serial_number for certificate in also}
        made = fleet.authority.revocations(serials, number + 1, now_s, after=after)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, made.public_bytes(Encoding.PEM))


def _last(path: Path) -> tuple[int, datetime]:
    """The number and the date of the list that was written last."""
    try:
        last = x509.load_pem_x509_crl(path.read_bytes())
        number = last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigurationError(f"{path} is not a list of revoked certificates ({error}): delete it") from error
    return number, last.last_update_utc
