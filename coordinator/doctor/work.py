"""Checks the tasks, and the devices that they need."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from coordinator.config import TaskConfig, read_task
from coordinator.doctor.patient import Patient
from coordinator.doctor.records import GOES_ON
from coordinator.models.foundation import model_type_of
from coordinator.store.opening import is_served
from coordinator.store.records import DeviceRecord, TaskRecord
from coordinator.store.states import TaskStatus
from edge_sdk.diagnosis.findings import Finding, Mark
from edge_sdk.elastic.families import family_of
from edge_sdk.errors import RaffmError

_DAY_S = 86400.0
_SILENT_DAYS = 7
_NAMED = 5
_UNKNOWN = "under an older version, which stored no reason; see the log of `coordinator serve` of that time"
_WAITS = {TaskStatus.PENDING, TaskStatus.RUNNING}


def tasks(patient: Patient) -> Iterator[Finding]:
    """Whether the tasks' files still exist, which tasks have failed, and which wait with no coordinator running."""
    with patient.reading() as tx:
        known = tx.tasks.all()
    failures = {task.name: task.failure or _UNKNOWN for task in known if task.status is TaskStatus.FAILED}
    for task in known:
        yield from _sources(task)
    for name, why in failures.items():
        yield Finding("tasks", Mark.WARNING, f"{name} failed: {why}", f"fix that, then `coordinator task start {name}`")
    waiting = [task.name for task in known if task.status in _WAITS]
    if waiting and not is_served(patient.state_dir):
        words = f"waiting, but no coordinator runs: {', '.join(waiting)}"
        yield Finding("tasks", Mark.WARNING, words, "start `coordinator serve`")
    counts = Counter(task.status.value for task in known)
    found = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    yield Finding("tasks", Mark.OK, found or "none yet")


def devices(patient: Patient) -> Iterator[Finding]:
    """Which devices have been silent for long, and which tasks have too few devices online for a round."""
    with patient.reading() as tx:
        everybody = tx.devices.all()
        wanted = [read_task(task.config) for task in tx.tasks.all() if task.status in _WAITS]
    known = [it for it in everybody if it.revoked_s is None]
    advice = "check their power and network; run `edge-agent doctor` on them"
    yield from _silent([it for it in known if it.has_said_hello], "offline for a week or more", advice)
    advice = "start their agents, or revoke them by `coordinator device revoke`"
    yield from _silent(
        [it for it in known if not it.has_said_hello], "enrolled a week ago or more, never connected", advice
    )
    found = f"{len(known)} known" if known else "none yet"
    if is_served(patient.state_dir):  # otherwise nobody records which devices are online
        yield from _too_few(wanted, known)
        found += f", {sum(it.online for it in known)} of them online"
    yield Finding("devices", Mark.OK, found)


def _silent(devices: Sequence[DeviceRecord], words: str, advice: str) -> Iterator[Finding]:
    """Name those of these devices that have sent nothing for a week, the most recently heard first."""
    days = {it.id: (time.time() - it.last_seen_s) / _DAY_S for it in devices}
    silent = sorted((name for name in days if days[name] > _SILENT_DAYS), key=days.__getitem__)
    if silent:
        named = ", ".join(f"{name} ({days[name]:.0f} days)" for name in silent[:_NAMED])
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        yield Finding("devices", Mark.WARNING, f"{words}: {named}{more}", advice)


def _sources(task: TaskRecord) -> Iterator[Finding]:
    """Whether a task's model folder and files exist; a finished task needs them to be saved or started again."""
    config = read_task(task.config)
    mark = Mark.FAILURE if task.status in GOES_ON else Mark.WARNING
    try:
        family_of(model_type_of(Path(config.model_dir)))
    except RaffmError as error:
        yield Finding("tasks", mark, f"{task.name}: {error}", "put the model's folder back in its place")
    for file in dict.fromkeys((config.calibration_file, config.test_file)):
        if not os.access(file, os.R_OK):
            yield Finding("tasks", mark, f"{task.name}: {file} is missing or cannot be read", "put it back")


def _too_few(wanted: Sequence[TaskConfig], known: Sequence[DeviceRecord]) -> Iterator[Finding]:
    for task in wanted:
        online = sum(it.online and task.targets.include(it.id, it.profile, it.group) for it in known)
        if online < task.quorum:
            words = f"{task.name} needs {task.quorum} devices at once, and {online} of its target devices are online"
            yield Finding("devices", Mark.WARNING, words, "start more agents, or lower the task's quorum")
