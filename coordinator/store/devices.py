"""Who is there, and what it can spare."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select

from coordinator.store import tables
from coordinator.store.records import DeviceRecord
from coordinator.store.repository import Repository
from coordinator.store.states import NOT_SEEN
from edge_sdk.protocol.messages import Snapshot


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Some of the fleet: ``text`` is a part of the id or of the profile's name; ``None`` leaves a question open."""

    text: str = ""
    online: bool | None = None
    group: str | None = None


class Devices(Repository[DeviceRecord]):
    """The fleet."""

    table = tables.devices
    record = DeviceRecord

    def enrol(self, device: str, group: str | None, now_s: float) -> None:
        """A device has a certificate, and is in ``group`` where one is named; it may be one that was revoked."""
        if self.get(device) is None:
            self._insert(DeviceRecord(device, NOT_SEEN, 0, False, None, 1.0, now_s))
        self._update({"id": device}, revoked_s=None, **({} if group is None else {"group": group}))

    def revoke(self, device: str, now_s: float) -> None:
        """The device is not heard any more."""
        self._update({"id": device}, revoked_s=now_s, online=False)

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
        """One device, ``None`` where it has neither enrolled nor said hello."""
        return self._one(id=device)

    def page(self, most: int, after: str | None) -> tuple[DeviceRecord, ...]:
        """The first ``most`` devices by id, of those after one."""
        return self._some(most, "id", after or "")

    def search(self, wanted: DeviceFilter, most: int, skipped: int = 0) -> tuple[DeviceRecord, ...]:
        """At most ``most`` of the ``wanted`` devices by id, after the first ``skipped``."""
        found = select(self.table).where(_is(wanted)).order_by(self.table.c.id).limit(most).offset(skipped)
        return self._found(found)

    def count(self, wanted: DeviceFilter) -> int:
        """How many devices are ``wanted``."""
        return self._connection.execute(select(func.count()).select_from(self.table).where(_is(wanted))).scalar_one()

    def groups(self) -> tuple[str, ...]:
        """Every group that has a device, by name."""
        column = self.table.c.group
        return tuple(self._connection.execute(select(column).distinct().order_by(column)).scalars())

    def all(self) -> tuple[DeviceRecord, ...]:
        """Every device by id."""
        return self._all("id")


def _is(wanted: DeviceFilter) -> ColumnElement[bool]:
    columns, text = tables.devices.c, wanted.text.lower()  # ids and profiles are lower case; LIKE's case differs
    checks = [or_(columns.id.contains(text, autoescape=True), columns.profile.contains(text, autoescape=True))]
    if wanted.online is not None:
        checks.append(columns.online.is_(wanted.online))
    if wanted.group is not None:
        checks.append(columns.group == wanted.group)
    return and_(*checks)
