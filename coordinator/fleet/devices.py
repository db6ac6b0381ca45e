"""The devices that a fleet knows: all that have ever enrolled or connected."""

from __future__ import annotations

from coordinator.store.database import Transaction
from coordinator.store.records import DeviceRecord
from edge_sdk.errors import ConfigurationError


def known_device(tx: Transaction, device: str) -> DeviceRecord:
    """The record of a device. Raises ``ConfigurationError`` if there is none."""
    known = tx.devices.get(device)
    if known is None:
        raise ConfigurationError(f"there is no device {device!r}; `coordinator device list` shows the known ones")
    return known
