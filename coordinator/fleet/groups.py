"""Groups of devices: each device is in one, ``default`` until an operator moves it."""

from __future__ import annotations

from coordinator.fleet.devices import known_device
from coordinator.store.database import Store
from edge_sdk.protocol.topics import check_name


def put_into_group(store: Store, device: str, group: str, now_s: float, who: str) -> None:
    """Move a device; ``ConfigurationError`` if there is no such device, or ``group`` is a malformed name."""
    check_name(group, "group")
    with store.transaction() as tx:
        known_device(tx, device)
        tx.devices.set_group(device, group)
        tx.audit.note(now_s, who, f"put into group {group}", device)
