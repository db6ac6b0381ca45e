"""Checks the store, the blobs that it records, and the free disk space that both need."""

from __future__ import annotations

import random
import shutil
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path

from coordinator.config import TaskConfig, read_task
from coordinator.doctor.patient import Patient
from coordinator.rounds.recovery import recorded_blobs
from coordinator.store.database import Transaction
from coordinator.store.migrations import HEAD
from coordinator.store.opening import ADDRESS_FILE, is_new, look_into
from coordinator.store.states import TaskStatus
from edge_sdk.diagnosis.findings import Finding, Mark
from edge_sdk.errors import StorageError
from edge_sdk.transport.blob_folder import is_sound

MIB = 1 << 20
SAMPLE = 20
_MIN_FREE_BYTES = 256 * MIB
GOES_ON = {TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.PAUSED}
_NAMED = 3


def store(patient: Patient) -> Iterator[Finding]:
    """Whether the store opens and has the newest schema; it is not upgraded."""
    if is_new(patient.state_dir):
        yield Finding("store", Mark.WARNING, "none yet", "`coordinator task create` creates it")
        return
    try:
        with closing(look_into(patient.state_dir)) as opened:
            found = opened.revision()
    except StorageError as error:
        advice = "check that its server runs and admits this user"
        if not (patient.state_dir / ADDRESS_FILE).exists():
            advice = "restore a backup into another folder by `coordinator restore`"
        yield Finding("store", Mark.FAILURE, str(error), advice)
        return
    if found == HEAD:
        yield Finding("store", Mark.OK, f"opens; schema {HEAD}, the newest")
    elif found is None or (found.isdecimal() and int(found) < int(HEAD)):
        advice = "back up the folder; the next command that opens the store upgrades it"
        yield Finding("store", Mark.WARNING, f"schema {found or 'none'} is older than this version's, {HEAD}", advice)
    else:
        words = f"schema {found} is of a newer coordinator; this one knows up to {HEAD}"
        yield Finding("store", Mark.FAILURE, words, "update the coordinator")


def disk(patient: Patient) -> Iterator[Finding]:
    """Whether the disk has space for the next round of every unfinished task: its updates and the resulting version."""
    free = shutil.disk_usage(patient.state_dir).free
    with patient.reading() as tx:
        tasks = [read_task(known.config) for known in tx.tasks.all() if known.status in GOES_ON]
        needed = sum(_round_bytes(tx, task) for task in tasks)
    found = f"{_mib(free)} free; the next rounds of {len(tasks)} tasks need about {_mib(needed)}"
    if free < max(needed, _MIN_FREE_BYTES):
        yield Finding("disk", Mark.FAILURE, found, "free some: a round that does not fit waits for the disk")
    elif free < 2 * needed:
        yield Finding("disk", Mark.WARNING, found, "free some before it runs out")
    else:
        yield Finding("disk", Mark.OK, found)


def blobs(patient: Patient) -> Iterator[Finding]:
    """Whether all recorded blobs exist, and whether those that are read, a sample or all, match their digests."""
    with patient.reading() as tx:
        recorded = recorded_blobs(tx)
    there = {digest for digest in recorded if (patient.blob_dir / digest).exists()}
    with patient.reading() as tx:
        missing = (recorded - there) & recorded_blobs(tx)  # a running coordinator may have deleted some meanwhile
    if missing:
        advice = "copy them from a backup (folder blobs/): their tasks cannot continue without them"
        yield Finding("blobs", Mark.FAILURE, f"missing: {len(missing)} of {len(recorded)}, {_few(missing)}", advice)
    looked_at = there if patient.all_blobs else _sample(there)
    unsound = (digest for digest in looked_at if not is_sound(patient.blob_dir / digest))
    damaged = {digest for digest in unsound if (patient.blob_dir / digest).exists()}  # else it was deleted meanwhile
    if damaged:
        advice = "copy them from a backup, and check the disk; --all-blobs verifies every one"
        yield Finding(
            "blobs",
            Mark.FAILURE,
            f"damaged: {len(damaged)} of {len(looked_at)} that were verified, {_few(damaged)}",
            advice,
        )
    if not missing and not damaged:
        yield Finding("blobs", Mark.OK, f"all {len(recorded)} exist; {len(looked_at)} were verified")


def _round_bytes(tx: Transaction, task: TaskConfig) -> int:
    """An estimate of a round's size in bytes: that of the last one.

    Before the first round, every device's update counts as much as the whole model.
    """
    latest, newest = tx.versions.latest(task.name), tx.rounds.newest(task.name)
    version = _model_bytes(task) if latest is None else sum(entry.size_bytes for entry in latest.blobs)
    if newest is None:
        return version * (1 + (task.max_devices or task.min_devices))
    return version + sum(update.size_bytes for update in tx.updates.of_round(task.name, newest.number))


def _model_bytes(task: TaskConfig) -> int:
    return sum(path.stat().st_size for path in Path(task.model_dir).glob("*.safetensors"))


def _sample(digests: Collection[str]) -> list[str]:
    return random.sample(sorted(digests), min(SAMPLE, len(digests)))


def _few(digests: Collection[str]) -> str:
    some = [f"{digest[:16]}…" for digest in sorted(digests)[:_NAMED]]
    return ", ".join(some) + (" and more" if len(digests) > _NAMED else "")


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"
