"""Queue, start, pause, stop and save a task; its settings and files are checked before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from coordinator.aggregation.rule import AdapterMerge
from coordinator.config import TaskConfig, encoded_task, read_task
from coordinator.models.batches import labels_of
from coordinator.models.foundation import model_type_of
from coordinator.store.database import Store, Transaction
from coordinator.store.records import TaskRecord
from coordinator.store.states import TaskStatus
from edge_sdk.data import read_examples
from edge_sdk.elastic.families import family_of
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.topics import check_name
from edge_sdk.transport.blob_folder import BlobFolder

_FROM = {
    TaskStatus.PENDING: {TaskStatus.PAUSED, TaskStatus.STOPPED, TaskStatus.FAILED},
    TaskStatus.PAUSED: {TaskStatus.PENDING, TaskStatus.RUNNING},
    TaskStatus.STOPPED: {TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.PAUSED},
}
"""For each status that an operator can give a task: the statuses from which it can."""
_ACTIONS = {
    TaskStatus.PENDING: "start task",
    TaskStatus.PAUSED: "pause task",
    TaskStatus.STOPPED: "stop task",
}
_WORDS = {TaskStatus.PENDING: "started", TaskStatus.PAUSED: "paused", TaskStatus.STOPPED: "stopped"}


def queue_task(store: Store, config: TaskConfig, now_s: float, who: str) -> None:
    """Store a pending task with its classes, and note in the audit log ``who`` created it.

    Raises ``ConfigurationError`` for a name that is taken or an invalid setting, and ``UnsupportedArchitectureError``,
    ``ModelFormatError`` or ``DataFormatError`` for its model or files.
    """
    check_name(config.name, "task")
    encoded_task(config)
    family_of(model_type_of(Path(config.model_dir)))
    found = tuple(labels_of(*(read_examples(Path(file)) for file in (config.calibration_file, config.test_file))))
    settled = config.data.labels or found
    if unnamed := {*found}.difference(settled):
        raise ConfigurationError(
            f"data.labels lacks {', '.join(sorted(unnamed))}, which calibration_file or test_file have: add them"
        )
    encoded = encoded_task(replace(config, data=replace(config.data, labels=settled)))
    with store.transaction() as tx:
        is_new = tx.tasks.get(config.name) is None
        if tx.tasks.add(config.name, encoded, now_s).config != encoded:
            raise ConfigurationError(f"task {config.name!r} exists with other settings; choose another name")
        if is_new:
            tx.audit.note(now_s, who, "create task", config.name)


def change_status(store: Store, task: str, wanted: TaskStatus, now_s: float, who: str) -> None:
    """Start, pause or stop a task; a running coordinator follows within a second.

    Raises ``ConfigurationError`` if there is no such task, or its status does not allow that.
    """
    with store.transaction() as tx:
        known = known_task(tx, task)
        if known.status not in _FROM[wanted]:
            raise ConfigurationError(f"task {task!r} is {known.status.value} and cannot be {_WORDS[wanted]}")
        tx.tasks.set_status(task, wanted)
        tx.audit.note(now_s, who, _ACTIONS[wanted], task)


def reachable(status: TaskStatus) -> frozenset[TaskStatus]:
    """The statuses that an operator can give a task with this status."""
    return frozenset(wanted for wanted, sources in _FROM.items() if status in sources)


def known_task(tx: Transaction, task: str) -> TaskRecord:
    """The task of this name; if there is none, a ``ConfigurationError`` that lists the names that there are."""
    found = tx.tasks.get(task)
    if found is None:
        names = ", ".join(known.name for known in tx.tasks.all()) or "none"
        raise ConfigurationError(f"there is no task {task!r}; the tasks are {names}")
    return found


def save_version(store: Store, blobs: BlobFolder, task: str, folder: Path, version: int | None = None) -> int:
    """Write a version of ``task``, by default the newest, as a Hugging Face or PEFT folder; returns its number.

    Raises ``ConfigurationError`` where there is no such task or version, or it is not kept any more, and what loading
    its model raises.
    """
    with blobs.in_use():
        return _saved(store, blobs, task, folder, version)


def _saved(store: Store, blobs: BlobFolder, task: str, folder: Path, version: int | None) -> int:
    with store.reading() as tx:
        known = known_task(tx, task)
        found = tx.versions.latest(task) if version is None else tx.versions.get(task, version)
    if found is None and version is None:
        raise ConfigurationError(f"task {task!r} has no version yet: it is {known.status.value}")
    if found is None or not all(blobs.has(entry.digest) for entry in found.blobs):
        number = version if found is None else found.number
        raise ConfigurationError(
            f"version {number} of {task!r} is not kept: keep_versions says how many of the newest are"
        )
    from coordinator.models.run import foundation_of  # noqa: PLC0415 - seconds of import, after the task was found
    from coordinator.models.saving import save_model  # noqa: PLC0415
    from coordinator.models.versions import load_version  # noqa: PLC0415

    config = read_task(known.config)
    calibration, test = read_examples(Path(config.calibration_file)), read_examples(Path(config.test_file))
    foundation = foundation_of(config, calibration, test)
    is_stacked = config.aggregation.adapters is AdapterMerge.STACK
    save_model(foundation, load_version(blobs, found.number, found.blobs), folder, is_stacked=is_stacked)
    return found.number
