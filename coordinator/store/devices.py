"""The devices of the fleet: whether they are online, and what resources they report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select

from coordinator.store import tables
from coordinator.store.records import DeviceRecord
from coordinator.store.repository import Repository
from coordinator.store.states import NOT_SEEN
from edge_sdk.protocol.messages import Snapshot


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Which devices to list. ``text`` must be part of the id or of the profile's name; ``None`` matches everything."""

    text: str = ""
    online: bool | None = None
    group: str | None = None


class Devices(Repository[DeviceRecord]):
    """Devices by id."""

    table = tables.devices
    record = DeviceRecord

    def enrol(self, device: str, group: str | None, now_s: float) -> None:
        """Record that a device has a certificate or a password, and put it into ``group`` unless that is ``None``.

        This undoes a revocation.
        """
        if self.get(device) is None:
            self._insert(DeviceRecord(device, NOT_SEEN, 0, False, None, 1.0, now_s))
        self._update({"id": device}, revoked_s=None, **({} if group is None else {"group": group}))

    def revoke(self, device: str, now_s: float) -> None:
        """Record that a device is revoked: its messages are ignored from now on."""
        self._update({"id": device}, revoked_s=now_s, online=False)

    def hello(self, device: str, profile: str, session: int, now_s: float) -> bool:
        """Record a hello; ``False``, and nothing changes, if a later session is known or the device is revoked."""
        known = self.get(device)
        if known is None:
            self._insert(DeviceRecord(device, profile, session, True, None, 1.0, now_s))
            return True
        if session < known.session or known.revoked_s is not None:
            return False
        self._update({"id": device}, profile=profile, session=session, online=True, last_seen_s=now_s)
        return True

    def offline(self, device: str, session: int) -> bool:
        """Record a goodbye or a last will.

        Returns ``False`` and changes nothing if a later session has said hello since, or the device is unknown.
        """
        known = self.get(device)
        if known is None or session < known.session:
            return False
        self._update({"id": device}, online=False)
        return True

    def seen(self, device: str, now_s: float, snapshot: Snapshot | None = None) -> None:
        """Record that the device has sent something, and its ``snapshot`` if it reported one."""
        changes = {} if snapshot is None else {"snapshot": snapshot}
        self._update({"id": device}, online=True, last_seen_s=now_s, **changes)

    def set_memory_factor(self, device: str, memory_factor: float) -> None:
        """Set the factor that multiplies the memory that the device reports."""
        self._update({"id": device}, memory_factor=memory_factor)

    def set_group(self, device: str, group: str) -> None:
        """Move the device to another group."""
        self._update({"id": device}, group=group)

    def get(self, device: str) -> DeviceRecord | None:
        """One device, or ``None`` if it has neither enrolled nor said hello."""
        return self._one(id=device)

    def page(self, most: int, after: str | None) -> tuple[DeviceRecord, ...]:
        """The first ``most`` devices by id whose ids come after ``after``; from the start if ``None``."""
        return self._some(most, "id", after or "")

    def search(self, wanted: DeviceFilter, most: int, skipped: int = 0) -> tuple[DeviceRecord, ...]:
        """At most ``most`` of the ``wanted`` devices by id, after skipping ``skipped``."""
        found = select(self.table).where(_is(wanted)).order_by(self.table.c.id).limit(most).offset(skipped)
        return self._found(found)

    def count(self, wanted: DeviceFilter) -> int:
        """The number of ``wanted`` devices."""
        return self._connection.execute(select(func.count()).select_from(self.table).where(_is(wanted))).scalar_one()

    def online(self) -> frozenset[str]:
        """The ids of the devices that are online."""
        return self._ids(self.table.c.online.is_(True))

    def away(self) -> frozenset[str]:
        """The ids of the devices that are not online."""
        return self._ids(self.table.c.online.is_(False))

    def revoked(self) -> frozenset[str]:
        """The ids of the devices that are revoked."""
        return self._ids(self.table.c.revoked_s.is_not(None))

    def memory_factors(self) -> Mapping[str, float]:
        """The memory factor of each device that is not revoked."""
        columns = self.table.c
        found = select(columns.id, columns.memory_factor).where(columns.revoked_s.is_(None))
        return {row[0]: row[1] for row in self._connection.execute(found)}

    def groups(self) -> tuple[str, ...]:
        """The names of the groups that have a device, sorted."""
        column = self.table.c.group
        return tuple(self._connection.execute(select(column).distinct().order_by(column)).scalars())

    def all(self) -> tuple[DeviceRecord, ...]:
        """Every device by id."""
        return self._all("id")

    def _ids(self, which: ColumnElement[bool]) -> frozenset[str]:
        """Of 10,000 devices in a twentieth of the time that their records take."""
        return frozenset(self._connection.execute(select(self.table.c.id).where(which)).scalars())


def _is(wanted: DeviceFilter) -> ColumnElement[bool]:
    columns, text = tables.devices.c, wanted.text.lower()  # ids and profiles are lower case; LIKE's case differs
    checks = [or_(columns.id.contains(text, autoescape=True), columns.profile.contains(text, autoescape=True))]
    if wanted.online is not None:
        checks.append(columns.online.is_(wanted.online))
    if wanted.group is not None:
        checks.append(columns.group == wanted.group)
    return and_(*checks)
