"""The pages of tasks: their progress, their settings, and the buttons that create, start, pause and stop one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.resources import files

from fastapi import APIRouter, Request, status
from fastapi.responses import RedirectResponse, Response

from coordinator.api.asking import Name
from coordinator.config import TaskConfig, read_task, task_of_toml
from coordinator.dashboard.access import Desk, Form, Opened, Operator, Viewer
from coordinator.dashboard.rendering import PATH, page
from coordinator.dashboard.rounds import progress_of
from coordinator.listing import Row, settings_of
from coordinator.rounds.tasks import change_status, known_task, queue_task, reachable
from coordinator.store.records import EvaluationRecord
from coordinator.store.states import TaskStatus
from edge_sdk.errors import ConfigurationError, DataFormatError, ModelFormatError

_VERSIONS = 20
_REQUIRED = ("name", "model_dir", "calibration_file", "test_file")
_REFUSED = (ConfigurationError, DataFormatError, ModelFormatError)
router = APIRouter()


class Verb(str, Enum):
    """What a button does to a task; the value is the last part of its address."""

    START = "start"
    PAUSE = "pause"
    STOP = "stop"

    @property
    def wanted(self) -> TaskStatus:
        """The status that the button sets."""
        return {Verb.START: TaskStatus.PENDING, Verb.PAUSE: TaskStatus.PAUSED, Verb.STOP: TaskStatus.STOPPED}[self]


@router.get("/tasks")
def show_tasks(request: Request, desk: Opened, _: Viewer) -> Response:
    """Every task, newest first."""
    with desk.store.reading() as tx:
        rows = [progress_of(tx, known) for known in reversed(tx.tasks.all())]
    return page(request, "tasks.html", rows=rows)


@router.get("/new-task")
def ask_for_task(request: Request, _: Operator) -> Response:
    """The form for a new task, with an example in it."""
    return page(request, "new_task.html", toml=example())


@router.post("/tasks")
def create_task(request: Request, desk: Opened, who: Operator, form: Form) -> Response:
    """Queue the task that the form describes; if it is invalid, show the form again with the error."""
    toml = form.get("toml", "").replace("\r\n", "\n")
    try:
        config = task_of_toml(toml.encode(), "task", desk.state_dir)
        queue_task(desk.store, config, time.time(), who.name)
    except _REFUSED as error:
        return page(request, "new_task.html", toml=toml, told=str(error), code=status.HTTP_400_BAD_REQUEST)
    return _to_task(config.name)


@router.get("/tasks/{task}")
def show_task(request: Request, desk: Opened, _: Viewer, task: Name) -> Response:
    """One task."""
    return _task_page(request, desk, task)


@router.post("/tasks/{task}/{verb}")
def change_task(request: Request, desk: Opened, who: Operator, form: Form, task: Name, verb: Verb) -> Response:  # noqa: ARG001
    """Start, pause or stop a task; if that is not possible, show its page with the reason."""
    with desk.store.reading() as tx:
        known_task(tx, task)
    try:
        change_status(desk.store, task, verb.wanted, time.time(), who.name)
    except ConfigurationError as error:
        return _task_page(request, desk, task, told=str(error), code=status.HTTP_400_BAD_REQUEST)
    return _to_task(task)


def example() -> str:
    """An example of a task in TOML, to start from."""
    return files("coordinator.dashboard").joinpath("example.toml").read_text(encoding="utf-8")


def _to_task(task: str) -> Response:
    return RedirectResponse(f"{PATH}/tasks/{task}", status.HTTP_303_SEE_OTHER)


def _task_page(request: Request, desk: Desk, task: str, *, told: str = "", code: int = status.HTTP_200_OK) -> Response:
    with desk.store.reading() as tx:
        known = known_task(tx, task)
        progress = progress_of(tx, known)
        found = tx.evaluations.since(task, (progress.version or 0) - _VERSIONS)
    config = read_task(known.config)
    chosen, usual = _settings(config)
    return page(
        request,
        "task.html",
        own=f"{PATH}/tasks/{task}",
        code=code,
        told=told,
        progress=progress,
        verbs=[verb.value for verb in Verb if verb.wanted in reachable(known.status)],
        versions=_by_version(found),
        widths=list(dict.fromkeys(one.width for one in reversed(found))),
        chosen=chosen,
        usual=usual,
    )


def _settings(config: TaskConfig) -> tuple[list[Row], list[Row]]:
    """The settings that were chosen for this task, and those that have their defaults."""
    plain = TaskConfig(**{name: getattr(config, name) for name in _REQUIRED})
    usual = [row for row in settings_of(plain) if row["setting"] not in _REQUIRED]
    chosen = [row for row in settings_of(config) if row not in usual]
    names = {row["setting"] for row in chosen}
    return chosen, [row for row in usual if row["setting"] not in names]


def _by_version(found: Sequence[EvaluationRecord]) -> Mapping[int, Mapping[str, EvaluationRecord]]:
    """The evaluations of each version by width, newest version first."""
    versions: dict[int, dict[str, EvaluationRecord]] = {}
    for one in sorted(found, key=lambda one: -one.round):
        versions.setdefault(one.round, {})[one.width] = one
    return versions
