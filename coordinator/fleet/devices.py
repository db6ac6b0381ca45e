"""The devices that a fleet knows: whoever has ever enrolled or said hello."""

from __future__ import annotations

from coordinator.store.database import Transaction
from coordinator.store.records import DeviceRecord
from edge_sdk.errors import ConfigurationError


def known_device(tx: Transaction, device: str) -> DeviceRecord:
    """What is known of a device; ``ConfigurationError`` where there is no such device."""
    known = tx.devices.get(device)
    if known is None:
        raise ConfigurationError(f"there is no device {device!r}; `coordinator device list` shows those that are")
    return known
