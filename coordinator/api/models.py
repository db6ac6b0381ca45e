"""The models of tasks, over HTTP: listed, downloaded, and made into releases on the coordinator's machine."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response, status
from fastapi.responses import StreamingResponse

from coordinator.api.asking import (
    ARCHIVE,
    PROBLEMS,
    Folder,
    Limit,
    Name,
    Opened,
    Operator,
    Viewer,
    Work,
    known_or_404,
    page_of,
)
from coordinator.api.jobs import MakeRelease, SaveModel
from coordinator.api.schemas import NewRelease, Page, Problem, Release, Version
from coordinator.api.workshop import sent
from coordinator.delivery.approving import known_release
from coordinator.delivery.creating import Wanted
from coordinator.rounds.tasks import known_task
from coordinator.store.database import Store

models = APIRouter(tags=["models"], dependencies=[Viewer], responses=PROBLEMS)
_MOST = 2**31 - 1


@models.get("/tasks/{task}/versions")
def list_versions(
    store: Opened, task: Name, limit: Limit = 100, after: Annotated[int, Query(ge=-1, le=_MOST)] = -1
) -> Page[Version]:
    """The versions of a task's model, oldest first; version 0 is the one before the first round."""
    with store.reading() as tx:
        known_or_404(lambda: known_task(tx, task))
        some, more = page_of(tx.versions.page(task, limit + 1, after), lambda known: str(known.number), limit)
        return Page(items=[Version.of(tx, known) for known in some], after=more)


@models.get("/tasks/{task}/model", response_class=StreamingResponse, responses=ARCHIVE)
async def save_model(
    store: Opened,
    _: Operator,
    folder: Folder,
    work: Work,
    task: Name,
    version: Annotated[
        int | None, Query(ge=0, le=_MOST, description="Version to download; default: the newest.")
    ] = None,
) -> Response:
    """A version as a tar of a Hugging Face folder, or of a PEFT folder of adapters; it takes seconds to minutes."""
    _require(store, task)
    number, file = await work.make(
        folder, lambda made_in: SaveModel(state_dir=str(folder), folder=made_in, task=task, version=version)
    )
    return sent(file, f"{task}-{int(number)}.tar")


@models.post(
    "/tasks/{task}/releases",
    status_code=status.HTTP_201_CREATED,
    responses={status.HTTP_409_CONFLICT: {"model": Problem}},
)
async def create_release(
    store: Opened, who: Operator, folder: Folder, work: Work, task: Name, asked: NewRelease
) -> Release:
    """Export a version for every known class of device, and evaluate each export on the task's test examples.

    The answer comes after seconds to minutes. The release is made also where nobody waits for it.
    """
    _require(store, task)
    wanted = Wanted(
        task=task,
        version=asked.version,
        groups=tuple(asked.groups),
        precisions=tuple(asked.precisions),
        days=asked.days,
        fleet=asked.fleet,
        threads=asked.threads,
    )
    job = MakeRelease(state_dir=str(folder), wanted=wanted, who=who.name)
    number = msgspec.json.decode(await work.perform(job), type=int)
    with store.reading() as tx:
        return Release.of(tx, known_release(tx, number))


def _require(store: Store, task: str) -> None:
    with store.reading() as tx:
        known_or_404(lambda: known_task(tx, task))
