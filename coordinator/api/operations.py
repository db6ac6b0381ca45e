"""Operating a coordinator over HTTP: metrics, the doctor, the fleet's authority and root of trust, and backups."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Annotated

import msgspec
from fastapi import APIRouter, Body, Query, Request, Response, status
from fastapi.responses import PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import JsonValue

from coordinator.api.asking import (
    ARCHIVE,
    PROBLEMS,
    Admin,
    Answers,
    Folder,
    Opened,
    Operator,
    Secured,
    Viewer,
    Work,
    known_or_404,
)
from coordinator.api.jobs import BackUp, Examine
from coordinator.api.schemas import Examination, FleetTold, Problem, TrustRoot
from coordinator.api.workshop import sent
from coordinator.delivery.roots import current_envelope, install, root_in
from edge_sdk.protocol.signing import Envelope

operations = APIRouter(tags=["operations"], dependencies=[Viewer], responses=PROBLEMS)
state = APIRouter(tags=["operations"], dependencies=[Viewer], responses=PROBLEMS)
_BUSY: Answers = {status.HTTP_409_CONFLICT: {"model": Problem}}


@operations.get("/metrics", response_class=PlainTextResponse)
def read_metrics(request: Request) -> Response:
    """Metrics of the fleet and of this process, for Prometheus."""
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)


@state.get("/metrics/board", responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}})
def read_board() -> Response:
    """A dashboard for Grafana, to import under Dashboards, New, Import."""
    board = files("coordinator.metrics").joinpath("grafana.json").read_text("utf-8")
    return Response(board, media_type="application/json")


@state.get("/doctor", responses=_BUSY)
async def examine(
    _: Operator,
    folder: Folder,
    work: Work,
    all_blobs: Annotated[bool, Query(description="Verify every blob instead of a sample.")] = False,
) -> Examination:
    """Check the coordinator: what is wrong, and what to do. Nothing is changed."""
    found = await work.perform(Examine(state_dir=str(folder), all_blobs=all_blobs))
    return Examination.model_validate_json(found)


@state.post("/backup", response_class=StreamingResponse, responses=ARCHIVE)
async def back_up(store: Opened, who: Admin, folder: Folder, work: Work) -> Response:
    """The coordinator's whole state as a tar file for `coordinator restore`. It contains its secret keys."""
    _, file = await work.make(folder, lambda made_in: BackUp(state_dir=str(folder), folder=made_in))
    with store.transaction() as tx:
        tx.audit.note(time.time(), who.name, "take a backup", "coordinator")
    return sent(file, "coordinator.tar")


@state.get("/fleet")
def show_fleet(fleet: Secured) -> FleetTold:
    """What devices are told, and the fingerprint of the CA that they trust."""
    return FleetTold.of(fleet)


@state.get("/root")
def show_root(store: Opened) -> TrustRoot:
    """The newest root of trust: whose signatures count, and the `root.json` that devices get."""
    with store.reading() as tx:
        return TrustRoot.of(known_or_404(lambda: current_envelope(tx)))


@state.post("/root", status_code=status.HTTP_201_CREATED)
def install_root(
    store: Opened, who: Admin, folder: Folder, signed: Annotated[dict[str, JsonValue], Body()]
) -> TrustRoot:
    """Install a root of trust that `coordinator root create` or `rotate` has written; secret keys stay elsewhere."""
    envelope: Envelope = root_in(msgspec.json.encode(signed), "this")
    install(store, folder, envelope, "this", time.time(), who.name)
    return show_root(store)
