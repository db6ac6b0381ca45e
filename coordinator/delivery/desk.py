"""Drives the open rollouts: sends each device what is due, and applies its reports.

Every change is stored before it is sent. Only the newest rollout of a task counts; earlier ones are history. A release
is sent again whenever its device says hello or asks for work, until the device has answered. Operators change a
rollout's status in the store, from any process, and the desk follows at its next tick.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from coordinator.delivery.approving import manifest_of
from coordinator.delivery.rollout import (
    Duty,
    Event,
    Member,
    Reported,
    RolloutState,
    Tick,
    Told,
    due,
    duty_to,
    fetching,
    step,
    unheard,
)
from coordinator.resources import Resources
from coordinator.store.database import Transaction
from coordinator.store.records import AssignmentRecord, ReleaseRecord, RolloutRecord
from coordinator.store.states import AssignmentStatus
from edge_sdk.errors import StorageError
from edge_sdk.logs import because
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import MAX_ROOTS, Release, ReleaseReport, Standing
from edge_sdk.protocol.releases import Assignment, ReleaseManifest, encoded
from edge_sdk.protocol.signing import Role, seal, sign

_log = logging.getLogger(__name__)
_HEARD = {
    Standing.TRYING: AssignmentStatus.TRYING,
    Standing.HEALTHY: AssignmentStatus.HEALTHY,
    Standing.ROLLED_BACK: AssignmentStatus.ROLLED_BACK,
}
_WAITING = {AssignmentStatus.SENT, AssignmentStatus.TRYING}
_REPEATED = (Duty.AGAIN, Duty.LEAVE)
_SENT_A_TICK = 256  # fewer messages than a transport queues


@dataclass(slots=True)
class _Open:
    """A rollout as this process knows it, with its devices as they were when it was loaded.

    ``sent`` is what this process has sent since the broker is connected: what came before may have been lost.
    """

    record: RolloutRecord
    release: ReleaseRecord
    manifest: ReleaseManifest
    state: RolloutState
    assigned: Mapping[str, AssignmentRecord]
    groups: Mapping[str, str]
    sent: set[tuple[str, Duty]] = field(default_factory=set)


class RolloutDesk:
    """Drives all rollouts of a coordinator. Every method is called from the service's loop."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._open: dict[str, _Open] = {}
        self._is_linked = True

    def link(self, *, is_up: bool) -> None:
        """Note whether the broker is connected. While it is not, no device can be heard, and silence does not count."""
        self._is_linked = is_up
        for each in self._open.values():
            each.sent.clear()

    def tick(self) -> None:
        """Read the operators' changes from the store, let time pass, and send the devices what is due."""
        self._follow()
        for each in self._open.values():
            if not self._is_linked:
                each.state = unheard(each.state, time.monotonic())
            self._advance(each, Tick())
            if self._is_linked:
                self._tell(each)

    def send(self, device: str) -> bool:
        """Send a device again what it has not answered yet; returns whether it now has a release to fetch and try."""
        is_busy = False
        for each in self._open.values():
            if duty_to(each.state, device) is Duty.FIRST and self._is_ours(each):
                self._advance(each, Told(frozenset({device})))
            duty = duty_to(each.state, device)
            if duty in _REPEATED:
                self._send(each, device, duty)
                is_busy |= each.state.members[device].status is AssignmentStatus.SENT
        return is_busy

    def fetching(self, device: str) -> None:
        """Note that a device fetches blobs, perhaps those of a release, which takes long over a slow link."""
        for each in self._open.values():
            each.state = fetching(each.state, device, time.monotonic())

    def reported(self, device: str, report: ReleaseReport) -> None:
        """Take a device's report on a release. One that is not on its assignment in the newest rollout is ignored."""
        each = self._open.get(report.task)
        assigned = None if each is None else each.assigned.get(device)
        if each is None or assigned is None or assigned.number != report.assignment:
            return
        standing = report.standing or (Standing.HEALTHY if report.healthy else Standing.ROLLED_BACK)
        _log.info("%s: release %d is %s", device, report.release, because(standing.value, report.detail))
        self._advance(each, Reported(device, _HEARD[standing], report.detail), report)
        duty, is_lost = duty_to(each.state, device), standing is Standing.TRYING and bool(report.detail)
        if duty is Duty.LEAVE or (is_lost and duty is Duty.AGAIN):
            self._send(each, device, duty)

    def is_settled(self, task: str) -> bool:
        """Whether every device that was sent a task's newest release has answered."""
        each = self._open.get(task)
        return each is None or not any(member.status in _WAITING for member in each.state.members.values())

    # -- the store

    def _follow(self) -> None:
        """Load the newest rollout of each task, and take over its stored status."""
        with self._resources.store.reading() as tx:
            newest = tx.rollouts.newest_ones()
            for record in newest:
                known = self._open.get(record.task)
                if known is None or known.record.rollout != record.rollout:
                    self._open[record.task] = _loaded(tx, record)
                    self._check_fleet(self._open[record.task])
        for record in newest:
            known = self._open[record.task]
            known.state = replace(known.state, status=record.status)

    def _is_ours(self, each: _Open) -> bool:
        """Whether the release is for this fleet; no device takes one that is for another."""
        return each.manifest.fleet == self._resources.settings.fleet

    def _check_fleet(self, each: _Open) -> None:
        if not self._is_ours(each):
            _log.error(
                "rollout %d goes to nobody: release %d is for fleet %s, and this is fleet %s; halt it, and make a "
                "release for this fleet",
                each.record.rollout,
                each.release.release,
                each.manifest.fleet,
                self._resources.settings.fleet,
            )

    def _advance(self, each: _Open, event: Event, report: ReleaseReport | None = None) -> None:
        """Take one step and store it in one transaction; a status that an operator has set meanwhile applies first."""
        before = each.state
        after = step(before, event, time.monotonic())
        if after == before and report is None:
            return
        with self._resources.store.transaction() as tx:
            current = tx.rollouts.get(each.record.rollout)
            if current is not None and current.status is not before.status:
                before = replace(before, status=current.status)
                after = step(before, event, time.monotonic())
            _write(tx, each, before, after, report)
        each.state = after
        if after.status is not before.status:
            _log.info("rollout %d of %s is %s", each.record.rollout, each.record.task, after.status.value)
        elif after.stage != before.stage:
            _log.info(
                "rollout %d of %s: stage %s", each.record.rollout, each.record.task, after.plan.stages[after.stage]
            )

    # -- the devices

    def _tell(self, each: _Open) -> None:
        """Send online devices what is due and was not sent on this connection; others get it when they come back."""
        first = due(each.state, Duty.FIRST) if self._is_ours(each) else frozenset()
        lacking = {
            (device, duty) for duty in _REPEATED for device in due(each.state, duty) if (device, duty) not in each.sent
        }
        if not first and not lacking:
            return
        with self._resources.store.reading() as tx:
            online = tx.devices.online()
        told = frozenset(sorted(first & online)[:_SENT_A_TICK])
        if told:
            self._advance(each, Told(told))
            _log.info("release %d of %s is sent to %d devices", each.release.release, each.record.task, len(told))
        lacking |= {(device, Duty.AGAIN) for device in told & due(each.state, Duty.AGAIN)}
        now = sorted((device, duty.value) for device, duty in lacking if device in online)
        for device, duty in now[:_SENT_A_TICK]:
            self._send(each, device, Duty(duty))

    def _send(self, each: _Open, device: str, duty: Duty) -> None:
        resources, assigned, is_left = self._resources, each.assigned[device], duty is Duty.LEAVE
        each.sent.add((device, duty))
        base = resources.settings.blob_url
        assignment = Assignment(
            number=assigned.number,
            fleet=each.manifest.fleet,
            device=device,
            group=each.groups[device],
            task=assigned.task,
            release=each.release.release,
            manifest=digest_of(each.release.manifest),
            export=None if is_left else assigned.export,
            expires_s=time.time() + resources.settings.assignment_valid_s,
            trial=each.state.plan.trial,
            address=None if base is None else base.rstrip("/"),
        )
        payload = encoded(assignment)
        message = Release(
            envelope=seal(Role.ROUND, payload, sign(resources.key, Role.ROUND, payload)),
            manifest=b"" if is_left else seal(Role.RELEASE, each.release.manifest, *each.release.signatures),
            roots=self._roots(),
        )
        resources.send(device, message)

    def _roots(self) -> tuple[bytes, ...]:
        """The newest envelopes of the root of trust, without the first, which devices got when they were set up."""
        with self._resources.store.reading() as tx:
            return tuple(root.envelope for root in tx.roots.all()[1:][-MAX_ROOTS:])


def _loaded(tx: Transaction, record: RolloutRecord) -> _Open:
    """Load a rollout from the store; from here on a monotonic clock counts how long its devices have been silent.

    What they said while no coordinator ran was not heard, so that time does not count as silence.
    """
    release = tx.releases.get(record.release)
    if release is None:
        raise StorageError(f"rollout {record.rollout} is of release {record.release}, which the store does not have")
    assigned = {known.device: known for known in tx.assignments.of_rollout(record.rollout)}
    now_s = time.monotonic()
    members = {known.device: Member(known.stage, known.status, now_s, known.reason) for known in assigned.values()}
    state = RolloutState(record.plan, members, record.status, record.stage)
    groups = {known.id: known.group for known in tx.devices.all()}
    return _Open(record, release, manifest_of(release), state, assigned, groups)


def _write(
    tx: Transaction, each: _Open, before: RolloutState, after: RolloutState, report: ReleaseReport | None
) -> None:
    if after.status is not before.status:
        tx.rollouts.set_status(each.record.rollout, after.status)
    if after.stage != before.stage:
        tx.rollouts.set_stage(each.record.rollout, after.stage)
    for device, member in _changes(before, after):
        tx.assignments.stands(each.assigned[device].number, member.status, member.reason, time.time())
    if report is not None:
        tx.assignments.reported(report.assignment, report)


def _changes(before: RolloutState, after: RolloutState) -> Iterable[tuple[str, Member]]:
    """By identity: a step keeps the members that it does not change, and comparing 10,000 takes a tenth of a second."""
    return ((name, member) for name, member in after.members.items() if member is not before.members[name])
