"""Who is there, and what it can spare."""

from __future__ import annotations

from coordinator.store import tables
from coordinator.store.records import DeviceRecord
from coordinator.store.repository import Repository
from edge_sdk.protocol.messages import Snapshot


class Devices(Repository[DeviceRecord]):
    """The fleet."""

    table = tables.devices
    record = DeviceRecord

    def hello(self, device: str, profile: str, session: int, now_s: float) -> bool:
        """Note a birth; ``False``, and nothing noted, where a later session is known already."""
        known = self.get(device)
        if known is None:
            self._insert(DeviceRecord(device, profile, session, True, None, 1.0, now_s))
            return True
        if session < known.session:
            return False
        self._update({"id": device}, profile=profile, session=session, online=True, last_seen_s=now_s)
        return True

    def offline(self, device: str, session: int) -> bool:
        """Note a goodbye or a last will; ``False`` where a later session has said hello since, or nobody ever did."""
        known = self.get(device)
        if known is None or session < known.session:
            return False
        self._update({"id": device}, online=False)
        return True

    def seen(self, device: str, now_s: float, snapshot: Snapshot | None = None) -> None:
        """Note that the device has spoken, and what it can spare where it said so."""
        changes = {} if snapshot is None else {"snapshot": snapshot}
        self._update({"id": device}, online=True, last_seen_s=now_s, **changes)

    def set_memory_factor(self, device: str, memory_factor: float) -> None:
        """What the device's own figure is multiplied by from now on."""
        self._update({"id": device}, memory_factor=memory_factor)

    def set_group(self, device: str, group: str) -> None:
        """Where the device is from now on."""
        self._update({"id": device}, group=group)

    def get(self, device: str) -> DeviceRecord | None:
        """One device, ``None`` where it has never said hello."""
        return self._one(id=device)

    def page(self, most: int, after: str | None) -> tuple[DeviceRecord, ...]:
        """The first ``most`` devices by id, of those after one."""
        return self._some(most, "id", after or "")

    def all(self) -> tuple[DeviceRecord, ...]:
        """Every device by id."""
        return self._all("id")
