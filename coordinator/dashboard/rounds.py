"""The page of a task's rounds: accuracy by width, bytes, and how many devices were asked, delivered or did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from coordinator.config import read_task
from coordinator.dashboard.access import Opened, Viewer
from coordinator.dashboard.charts import accuracy_chart, shown_widths
from coordinator.dashboard.outcomes import Word, word_of_round, word_of_task
from coordinator.dashboard.rendering import page
from coordinator.rounds.tasks import known_task
from coordinator.store.database import Transaction
from coordinator.store.records import EvaluationRecord, RoundRecord, TaskRecord
from coordinator.store.states import Outcome, Phase, TaskStatus

_ROUNDS = 30
_CHARTED = 200
_WIDE, _NARROW = (1100.0, 250.0), (360.0, 240.0)
router = APIRouter()


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A round in figures; ``late`` counts the offers that had neither an update nor a failure when it was decided."""

    round: RoundRecord
    word: Word
    asked: int
    delivered: int
    failed: int
    late: int
    uploaded_bytes: int
    accuracy: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a task; ``accuracy`` is that of its newest version, by width."""

    task: TaskRecord
    word: Word
    rounds_closed: int
    rounds: int
    version: int | None
    accuracy: Mapping[str, float]


@router.get("/rounds")
def show_rounds(
    request: Request, desk: Opened, _: Viewer, task: Annotated[str | None, Query(pattern=r"^[a-z0-9-]{1,64}$")] = None
) -> Response:
    """The newest rounds of a task: the requested one, else the newest that is running, else the newest."""
    with desk.store.reading() as tx:
        tasks = tx.tasks.all()
        chosen = known_task(tx, task) if task else _liveliest(tasks)
        if chosen is None:
            return page(request, "rounds.html", tasks=(), progress=None)
        newest = tx.rounds.newest(chosen.name)
        found = tx.evaluations.since(chosen.name, (newest.number if newest else 0) - _CHARTED)
        progress, rows = progress_of(tx, chosen), round_rows(tx, chosen.name, found)
    return page(
        request,
        "rounds.html",
        tasks=tasks,
        progress=progress,
        rows=rows,
        open_round=next((row for row in rows if row.round.phase is Phase.COLLECTING), None),
        is_closing=_is_closing(progress, rows),
        widths=shown_widths(found),
        charts=[accuracy_chart(found, *box) for box in (_WIDE, _NARROW)],
    )


def progress_of(tx: Transaction, known: TaskRecord) -> Progress:
    """The progress of a task."""
    latest = tx.versions.latest(known.name)
    judged = () if latest is None else tx.evaluations.of_round(known.name, latest.number)
    return Progress(
        known,
        word_of_task(known.status),
        tx.rounds.count(known.name, Phase.CLOSED),
        read_task(known.config).rounds,
        None if latest is None else latest.number,
        {one.width: one.accuracy for one in judged},
    )


def round_rows(tx: Transaction, task: str, found: Sequence[EvaluationRecord]) -> list[RoundRow]:
    """The newest rounds, newest first; ``found`` holds the evaluations."""
    rounds = tx.rounds.newest_first(task, _ROUNDS)
    after = rounds[-1].number - 1 if rounds else 0
    tally, uploaded = tx.offers.tally(task, after), tx.updates.uploaded_bytes(task, after)
    return [_row(known, tally.get(known.number, {}), uploaded.get(known.number, 0), found) for known in rounds]


def _row(
    known: RoundRecord, tally: Mapping[Outcome, int], uploaded_bytes: int, found: Sequence[EvaluationRecord]
) -> RoundRow:
    waiting = tally.get(Outcome.OFFERED, 0) + tally.get(Outcome.PAUSED, 0)
    return RoundRow(
        known,
        word_of_round(known),
        sum(tally.values()),
        tally.get(Outcome.UPDATED, 0),
        tally.get(Outcome.FAILED, 0),
        0 if known.phase is Phase.COLLECTING else waiting,
        uploaded_bytes,
        {one.width: one.accuracy for one in found if one.round == known.number},
    )


def _liveliest(tasks: Sequence[TaskRecord]) -> TaskRecord | None:
    running = [known for known in tasks if known.status is TaskStatus.RUNNING]
    return next(reversed(running or tasks), None)


def _is_closing(progress: Progress, rows: Sequence[RoundRow]) -> bool:
    """Whether the newest closed round has its updates, and its version is still being made."""
    is_running = progress.task.status is TaskStatus.RUNNING
    closed = [row.round.number for row in rows if row.round.phase is Phase.CLOSED]
    return is_running and bool(closed) and closed[0] > (progress.version or 0)
