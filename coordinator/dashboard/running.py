"""The page of what each device of a task was last told to run, and how that goes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from coordinator.dashboard.access import Opened, Viewer
from coordinator.dashboard.fleet import ROWS, Number, last_page, release_rows
from coordinator.dashboard.rendering import page
from coordinator.rounds.tasks import known_task
from coordinator.store.states import AssignmentStatus

router = APIRouter()
_WAITING = (AssignmentStatus.PENDING, AssignmentStatus.SENT, AssignmentStatus.TRYING)
_REFUSED = (AssignmentStatus.FAILED, AssignmentStatus.ROLLED_BACK)


@router.get("/running")
def show_running(
    request: Request,
    desk: Opened,
    _: Viewer,
    task: Annotated[str | None, Query(pattern=r"^[a-z0-9-]{1,64}$")] = None,
    number: Number = 1,
) -> Response:
    """The newest assignment of each device of a task: the requested task, or the newest one with a release."""
    with desk.store.reading() as tx:
        tallies = {known.name: tx.assignments.tally(known.name) for known in reversed(tx.tasks.all())}
        released = [name for name, tally in tallies.items() if tally]
        chosen = known_task(tx, task).name if task else next(iter(released), None)
        tally = tallies.get(chosen, {}) if chosen else {}
        last = last_page(sum(tally.values()))
        number = min(number, last)
        found = tx.assignments.newest_of(chosen, ROWS, ROWS * (number - 1)) if chosen else ()
        rows = release_rows(tx, found, desk.sizes)
    return page(
        request,
        "running.html",
        released=released,
        chosen=chosen,
        rows=rows,
        healthy=tally.get(AssignmentStatus.HEALTHY, 0),
        waiting=sum(tally.get(status, 0) for status in _WAITING),
        refused=sum(tally.get(status, 0) for status in _REFUSED),
        number=number,
        last=last,
    )
