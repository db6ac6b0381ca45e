"""The REST API of one coordinator's store: what the command line shows and changes, for programs and web pages.

Every request except ``/health`` needs a token (``Authorization: Bearer …``). A change and its entry in the audit log
are written in one transaction. Paths in a task's settings are paths on the coordinator's machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
from fastapi import APIRouter, Body, FastAPI, HTTPException, Query, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import JsonValue
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.api.access import make_token, revoke_token
from coordinator.api.asking import (
    PROBLEMS,
    WAIT,
    Admin,
    After,
    AfterNumber,
    Limit,
    Name,
    Opened,
    Operator,
    Viewer,
    headers_of,
    known_or_404,
    listed,
    page_of,
)
from coordinator.api.connections import BodyLimit
from coordinator.api.described import describe
from coordinator.api.enrolment import enrolling, identities
from coordinator.api.limiting import Guard, Limits, Throttle
from coordinator.api.models import models
from coordinator.api.operations import operations, state
from coordinator.api.releases import releases
from coordinator.api.schemas import (
    Assignment,
    AuditEntry,
    Device,
    Move,
    NewToken,
    Page,
    Round,
    Secret,
    Task,
    Token,
)
from coordinator.api.workshop import Workshop
from coordinator.config import TaskConfig
from coordinator.fleet.groups import put_into_group
from coordinator.metrics.fleet import fleet_registry
from coordinator.rounds.tasks import change_status, known_task, queue_task
from coordinator.store.database import Store
from coordinator.store.records import TokenRecord
from coordinator.store.states import TaskStatus
from edge_sdk.errors import (
    ConfigurationError,
    DataFormatError,
    MalformedMessageError,
    ModelFormatError,
    RaffmError,
    UntrustedError,
)

_CODES = {
    ConfigurationError: status.HTTP_400_BAD_REQUEST,
    DataFormatError: status.HTTP_400_BAD_REQUEST,
    ModelFormatError: status.HTTP_400_BAD_REQUEST,
    MalformedMessageError: status.HTTP_400_BAD_REQUEST,
    UntrustedError: status.HTTP_401_UNAUTHORIZED,
}
"""The status codes of errors that are the client's; any other is the server's, 503."""


def create_app(store: Store, state_dir: Path | None = None, limits: Limits | None = None) -> FastAPI:
    """The API of ``store``, which the caller closes after the app has ended.

    Devices can enrol if ``state_dir`` has the fleet's authority. Clients that exceed ``limits`` are told to wait.
    """
    app = FastAPI(title="raffm-edge coordinator", version="1", docs_url=None, redoc_url=None)
    app.state.store, app.state.state_dir = store, state_dir
    app.state.metrics, app.state.workshop = fleet_registry(store), Workshop()
    app.state.guard = Guard(limits or Limits())
    for middleware in (_HeadAsGet, BodyLimit):
        app.add_middleware(middleware)
    app.add_middleware(Throttle, guard=app.state.guard)
    for kind in (RaffmError, AnyHTTPException, RequestValidationError, UnicodeEncodeError):
        app.add_exception_handler(kind, _told)
    app.add_api_route("/health", _well, tags=["operations"], responses=WAIT)
    describe(app)
    app.include_router(operations)
    app.include_router(enrolling)
    for router in (_devices, _tasks, models, releases, identities, _access, state):
        app.include_router(router, prefix="/api/v1")
    return app


async def _told(_: Request, error: Exception) -> JSONResponse:
    """Answer with the error in one line, as on the command line; errors of the disk or the database are 503."""
    if isinstance(error, AnyHTTPException):
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers_of(error))
    if isinstance(error, RequestValidationError):
        return JSONResponse({"error": _first_of(error)}, status.HTTP_422_UNPROCESSABLE_CONTENT)
    if isinstance(error, UnicodeEncodeError):
        return JSONResponse({"error": "the request has text that is not valid UTF-8"}, status.HTTP_400_BAD_REQUEST)
    codes = (code for kind, code in _CODES.items() if isinstance(error, kind))
    said = str(error).encode(errors="backslashreplace").decode()  # it may quote a lone surrogate, JSON's \ud800
    return JSONResponse({"error": said}, next(codes, status.HTTP_503_SERVICE_UNAVAILABLE), headers_of(error))


def _well() -> dict[str, str]:
    """Whether the API answers, for monitoring."""
    return {"status": "ok"}


class _HeadAsGet:
    """Answers HEAD, which some monitors use, as GET; the server does not send the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if is_head else scope, receive, send)


def _first_of(error: RequestValidationError) -> str:
    """Where the first invalid value is, and why; the value itself may be a secret, and is not repeated."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


_devices = APIRouter(tags=["devices"], dependencies=[Viewer], responses=PROBLEMS)
_tasks = APIRouter(tags=["tasks"], dependencies=[Viewer], responses=PROBLEMS)
_access = APIRouter(tags=["access"], responses=PROBLEMS)


# -- devices


@_devices.get("/devices")
def list_devices(store: Opened, limit: Limit = 100, after: After = None) -> Page[Device]:
    """All devices that have ever enrolled or connected, by id."""
    with store.reading() as tx:
        found = tx.devices.page(limit + 1, after)
    some, more = page_of(found, lambda known: known.id, limit)
    return Page(items=[Device.model_validate(known) for known in some], after=more)


@_devices.get("/devices/{device}")
def show_device(store: Opened, device: Name) -> Device:
    """One device."""
    with store.reading() as tx:
        known = tx.devices.get(device)
    if known is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, f"there is no device {device!r}")
    return Device.model_validate(known)


@_devices.post("/devices/{device}/group")
def group_device(store: Opened, who: Operator, device: Name, move: Move) -> Device:
    """Move a device to a group."""
    show_device(store, device)
    put_into_group(store, device, move.group, time.time(), who.name)
    return show_device(store, device)


# -- tasks


@_tasks.get("/tasks")
def list_tasks(store: Opened, limit: Limit = 100, after: After = None) -> Page[Task]:
    """All tasks, oldest first."""
    with store.reading() as tx:
        some, more = listed(tx.tasks.all(), lambda known: known.name, limit, after)
        return Page(items=[Task.of(tx, known) for known in some], after=more)


@_tasks.post("/tasks", status_code=status.HTTP_201_CREATED)
def create_task(store: Opened, who: Operator, settings: Annotated[dict[str, JsonValue], Body()]) -> Task:
    """Create a task and queue it. Settings are named as in the TOML file; paths are on the coordinator's machine."""
    try:
        config = msgspec.convert(settings, TaskConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"task: {error}") from error
    queue_task(store, config, time.time(), who.name)
    return show_task(store, config.name)


@_tasks.get("/tasks/{task}")
def show_task(store: Opened, task: Name) -> Task:
    """One task."""
    with store.reading() as tx:
        return Task.of(tx, known_or_404(lambda: known_task(tx, task)))


@_tasks.post("/tasks/{task}/start")
def start_task(store: Opened, who: Operator, task: Name) -> Task:
    """Continue a paused, stopped or failed task where it left off."""
    return _changed(store, task, TaskStatus.PENDING, who)


@_tasks.post("/tasks/{task}/pause")
def pause_task(store: Opened, who: Operator, task: Name) -> Task:
    """Let the open round finish, and open no further ones."""
    return _changed(store, task, TaskStatus.PAUSED, who)


@_tasks.post("/tasks/{task}/stop")
def stop_task(store: Opened, who: Operator, task: Name) -> Task:
    """Close the open round now, with the updates that have arrived."""
    return _changed(store, task, TaskStatus.STOPPED, who)


@_tasks.get("/tasks/{task}/rounds")
def list_rounds(store: Opened, task: Name, limit: Limit = 100, after: AfterNumber = 0) -> Page[Round]:
    """The rounds of a task, oldest first."""
    with store.reading() as tx:
        known_or_404(lambda: known_task(tx, task))
        some, more = page_of(tx.rounds.page(task, limit + 1, after), lambda known: str(known.number), limit)
        return Page(items=[Round.of(tx, known) for known in some], after=more)


@_tasks.get("/tasks/{task}/assignments")
def list_assignments(store: Opened, task: Name, limit: Limit = 100, after: AfterNumber = 0) -> Page[Assignment]:
    """The assignments of a task's exports to devices, oldest first."""
    with store.reading() as tx:
        known_or_404(lambda: known_task(tx, task))
        found = tx.assignments.page_of_task(task, limit + 1, after)
    some, more = page_of(found, lambda known: str(known.number), limit)
    return Page(items=[Assignment.model_validate(known) for known in some], after=more)


def _changed(store: Store, task: str, wanted: TaskStatus, who: TokenRecord) -> Task:
    with store.reading() as tx:
        known_or_404(lambda: known_task(tx, task))
    change_status(store, task, wanted, time.time(), who.name)
    return show_task(store, task)


# -- access


@_access.get("/tokens")
def list_tokens(store: Opened, _: Admin, limit: Limit = 100, after: After = None) -> Page[Token]:
    """All tokens, by name, without their secrets."""
    with store.reading() as tx:
        some, more = listed(tx.tokens.all(), lambda known: known.name, limit, after)
    return Page(items=[Token.model_validate(known) for known in some], after=more)


@_access.post("/tokens", status_code=status.HTTP_201_CREATED)
def create_token(store: Opened, who: Admin, wanted: NewToken) -> Secret:
    """Create a token."""
    return Secret(secret=make_token(store, wanted.name, wanted.role, wanted.days, time.time(), who.name))


@_access.delete("/tokens/{token}", status_code=status.HTTP_204_NO_CONTENT)
def delete_token(store: Opened, who: Admin, token: Name) -> None:
    """Revoke a token; it is refused from now on."""
    known_or_404(lambda: revoke_token(store, token, time.time(), who.name))


@_access.get("/audit")
def list_audit(
    store: Opened, _: Admin, limit: Limit = 100, after: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> Page[AuditEntry]:
    """The audit log: who has changed what, newest first."""
    with store.reading() as tx:
        some, more = page_of(tx.audit.newest(limit + 1, after), lambda known: str(known.entry), limit)
    return Page(items=[AuditEntry.model_validate(known) for known in some], after=more)
