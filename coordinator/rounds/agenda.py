"""Runs tasks side by side: starts, pauses and stops them as the store says, and answers the devices.

An operator changes a task's status in the store, from any process; the agenda follows within a tick. A device works for
one task at a time: its open offer comes first, and a task that opens a round takes the round's devices from all others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from coordinator.config import read_task
from coordinator.delivery.desk import RolloutDesk
from coordinator.resources import Resources
from coordinator.rounds.candidates import Candidate, Candidates
from coordinator.rounds.conductor import Conductor, Stage
from coordinator.rounds.recovery import recorded_blobs
from coordinator.store.database import Transaction
from coordinator.store.records import DeviceRecord
from coordinator.store.states import Phase, TaskStatus
from edge_sdk.protocol.messages import (
    Declined,
    Ready,
    Receipt,
    Refusal,
    ReleaseReport,
    UpdateReady,
    Verdict,
    Wait,
)

_log = logging.getLogger(__name__)
_ASKS_PER_S = 20
_BEGINS = {TaskStatus.RUNNING, TaskStatus.PENDING}
_HELD = {TaskStatus.PAUSED, TaskStatus.STOPPED}
_HAS_ENDED = {TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.STOPPED}


class Agenda:
    """The tasks that run now. Every method is called from the service's loop."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._conductors: dict[str, Conductor] = {}
        self._candidates = Candidates()
        self._desk = RolloutDesk(resources)
        self._settled: set[str] = set()

    def link(self, *, is_up: bool) -> None:
        """See :meth:`.RolloutDesk.link`."""
        self._desk.link(is_up=is_up)

    # -- tasks

    def tick(self, gone_s: Mapping[str, float], revoked: AbstractSet[str] = frozenset()) -> None:
        """Follow the store, then the clock; ``gone_s`` says how many seconds each offline device has been offline.

        The ``revoked`` devices are dropped from everything.
        """
        self._follow()
        self._desk.tick()
        self._candidates.take(revoked)
        self._candidates.keep_since(time.monotonic() - self._resources.settings.ready_valid_s)
        for name, conductor in tuple(self._conductors.items()):
            was_gathering = conductor.stage is Stage.GATHERING
            conductor.drop(revoked)
            conductor.tick(gone_s)
            if was_gathering and conductor.stage is Stage.COLLECTING:  # the others choose first next time
                self._conductors[name] = self._conductors.pop(name)
        ended = [name for name, conductor in self._conductors.items() if conductor.stage is Stage.DONE]
        for name in ended:
            del self._conductors[name]
        if ended:
            self._candidates.keep_tasks(self._conductors)

    def is_over(self) -> bool:
        """Whether there were tasks and all of them have ended."""
        if self._conductors:
            return False
        with self._resources.store.reading() as tx:
            tasks = tx.tasks.all()
            is_unfinished = any(task.status in _HELD and self._is_unfinished(tx, task.name) for task in tasks)
        return bool(tasks) and not is_unfinished and {task.status for task in tasks} <= _HAS_ENDED

    def sweep(self) -> bool:
        """Delete the blobs that no kept version, no release and no open round needs; returns whether it could.

        Nothing is deleted while a command makes or reads blobs that are not recorded yet.
        """
        with self._resources.blobs.deleting() as is_alone:
            if is_alone:
                with self._resources.store.reading() as tx:
                    needed = recorded_blobs(tx)
                needed.update(*(conductor.needed() for conductor in self._conductors.values()))
                self._resources.blobs.keep_only(needed)
        return is_alone

    def _follow(self) -> None:
        with self._resources.store.reading() as tx:
            tasks = sorted(tx.tasks.all(), key=lambda task: task.status is not TaskStatus.RUNNING)
            idle = [task for task in tasks if task.name not in self._conductors]
            begun = {task.name for task in idle if task.status in _HELD and self._is_unfinished(tx, task.name)}
        for task in tasks:
            if task.name in self._conductors:
                self._conductors[task.name].obey(task.status)
        for task in idle:
            if task.name in begun or (task.status in _BEGINS and self._has_room()):
                _log.info("task %s starts", task.name, extra={"task": task.name})
                made = Conductor(read_task(task.config), self._resources, self._candidates, self._desk)
                self._conductors[task.name] = made
                self._settled.discard(task.name)
                made.start(task.status)

    def _is_unfinished(self, tx: Transaction, task: str) -> bool:
        """Whether a paused or stopped task still has a round to finish: collecting, or closed and not yet aggregated.

        Checked once per task, since no round opens without a conductor.
        """
        if task in self._settled:
            return False
        latest, rounds = tx.versions.latest(task), tx.rounds.all(task)
        number = 0 if latest is None else latest.number
        found = any(
            known.phase is Phase.COLLECTING or (known.phase is Phase.CLOSED and known.number > number)
            for known in rounds
        )
        if not found:
            self._settled.add(task)
        return found

    def _has_room(self) -> bool:
        running = sum(not conductor.is_held for conductor in self._conductors.values())
        return running < self._resources.settings.tasks_at_once

    # -- what devices say

    def device_ready(self, known: DeviceRecord, ready: Ready) -> None:
        """A device asks for work: send its release and its open offer again, or have it wait."""
        device, snapshot = known.id, ready.snapshot
        conductors = [conductor for conductor in self._conductors.values() if conductor.stage is not Stage.DONE]
        if self._desk.send(device):
            return
        self._candidates.forget(device)
        if any(conductor.offer_again(device, snapshot) for conductor in conductors):
            return  # also where an operator or the owner has made the device another since
        able, refusals = list[Conductor](), list[str]()
        for conductor in conductors:
            refusal = conductor.refusal(known, ready)
            if refusal is None:
                able.append(conductor)
            else:
                refusals.append(refusal)
        if able:
            names = frozenset(conductor.config.name for conductor in able)
            self._candidates.ask(device, Candidate(time.monotonic(), snapshot, names))
            refusals = [able[0].stage.value]
        self._wait(device, refusals[0] if refusals else "no task is waiting")

    def _wait(self, device: str, reason: str) -> None:
        """Seconds until a device should ask again: more in a larger fleet, to leave room for updates."""
        settings = self._resources.settings
        spread_s = min(len(self._candidates) / _ASKS_PER_S, 0.8 * settings.ready_valid_s)
        self._resources.send(device, Wait(retry_after_s=max(settings.retry_after_s, spread_s), reason=reason))

    def update_ready(self, device: str, update: UpdateReady) -> None:
        """Pass the update to its task; if that does not run, send its earlier receipt, or refuse it.

        One of a task that is about to begin is not answered: its device says it again.
        """
        if update.task in self._conductors:
            self._conductors[update.task].update_ready(device, update)
            return
        with self._resources.store.reading() as tx:
            known = tx.updates.get(update.update_id)
            task = tx.tasks.get(update.task)
        if known is not None:
            receipt = Receipt(update_id=update.update_id, verdict=known.verdict, reason=known.reason[:500])
            self._resources.send(device, receipt)
        elif task is None or task.status not in _BEGINS:
            reason = Refusal.TASK.because(f"{update.task} is not running")
            self._resources.send(device, Receipt(update_id=update.update_id, verdict=Verdict.REJECTED, reason=reason))

    def device_declined(self, device: str, declined: Declined) -> None:
        """Pass it to its task."""
        if declined.task in self._conductors:
            self._conductors[declined.task].device_declined(device, declined)

    def blob_fetched(self, device: str, digest: str) -> None:
        """Pass it to the task whose update it is."""
        for conductor in tuple(self._conductors.values()):
            conductor.blob_fetched(device, digest)

    def device_left(self, device: str) -> None:
        """A device has gone offline: it is not asked to work until it asks again."""
        self._candidates.forget(device)

    def device_came(self, device: str) -> None:
        """A device has said hello: send its release again if it has not answered, since it may be lost."""
        self._desk.send(device)

    def device_fetches(self, device: str) -> None:
        """See :meth:`.RolloutDesk.fetching`."""
        self._desk.fetching(device)

    def release_reported(self, device: str, report: ReleaseReport) -> None:
        """Pass it to the rollouts."""
        self._desk.reported(device, report)
