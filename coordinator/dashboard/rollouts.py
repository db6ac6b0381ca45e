"""The pages of rollouts: the form that starts one, its progress, its devices, and the buttons that steer it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, status
from fastapi.responses import RedirectResponse, Response

from coordinator.api.asking import Numbered
from coordinator.dashboard.access import Desk, Form, Opened, Operator, Viewer
from coordinator.dashboard.fleet import ROWS, Number, last_page, release_rows
from coordinator.dashboard.outcomes import word_of_rollout, word_of_standing
from coordinator.dashboard.releases import release_row
from coordinator.dashboard.rendering import PATH, page
from coordinator.dashboard.stages import stages_of
from coordinator.delivery.plans import typed_plan
from coordinator.delivery.rollout import Command
from coordinator.delivery.starting import chosen_exports, command_rollout, commands_for, known_rollout, start_rollout
from coordinator.store.plan import Plan
from coordinator.store.states import AssignmentStatus
from edge_sdk.errors import ConfigurationError

_NAMES = {
    "success": "healthy, percent",
    "error": "failed, percent",
    "health_interval": "health interval, seconds",
    "trial": "trial, seconds",
    "min_accuracy": "minimum accuracy",
    "max_accuracy_loss": "maximum accuracy loss",
    "max_latency_ms": "maximum latency, ms",
}
"""The form's numeric fields, and what errors call them."""
_WORDS = {
    Command.PAUSE: "Pause",
    Command.RESUME: "Resume",
    Command.HALT: "Halt",
    Command.ROLLBACK: "Roll back",
}
_LOST = (AssignmentStatus.FAILED, AssignmentStatus.ROLLED_BACK)
Standing = Annotated[AssignmentStatus | Literal[""], Query()]
router = APIRouter()


@router.get("/releases/{release}/new-rollout")
def ask_for_rollout(request: Request, desk: Opened, _: Operator, release: Numbered) -> Response:
    """The form for a rollout, filled in with the defaults."""
    return _form_page(request, desk, release, _usual())


@router.post("/releases/{release}/rollouts")
def begin_rollout(request: Request, desk: Opened, who: Operator, form: Form, release: Numbered) -> Response:
    """Start a rollout of an approved release; if that is refused, show the form again with the error."""
    with desk.store.reading() as tx:
        release_row(tx, release)
    try:
        plan = _plan(form)
        with desk.store.transaction() as tx:
            begun = start_rollout(tx, release, plan, time.time(), who.name)
    except ConfigurationError as error:
        typed = {name: form.get(name, "") for name in ("stages", *_NAMES)}
        return _form_page(request, desk, release, typed, str(error), status.HTTP_400_BAD_REQUEST)
    return _to_rollout(begun.rollout)


@router.get("/rollouts/{rollout}")
def show_rollout(
    request: Request, desk: Opened, _: Viewer, rollout: Numbered, state: Standing = "", number: Number = 1
) -> Response:
    """One rollout, with one page of its devices."""
    return _rollout_page(request, desk, rollout, state, number)


@router.post("/rollouts/{rollout}/{command}")
def say_to_rollout(
    request: Request,
    desk: Opened,
    who: Operator,
    form: Form,  # noqa: ARG001
    rollout: Numbered,
    command: Command,
) -> Response:
    """Pause, resume, halt or roll back a rollout; if that is not possible, show its page with the reason."""
    with desk.store.reading() as tx:
        known_rollout(tx, rollout)
    try:
        with desk.store.transaction() as tx:
            command_rollout(tx, rollout, command, time.time(), who.name)
    except ConfigurationError as error:
        return _rollout_page(request, desk, rollout, told=str(error), code=status.HTTP_400_BAD_REQUEST)
    return _to_rollout(rollout)


def _usual() -> dict[str, str]:
    """The form's values before anybody has typed."""
    plan = Plan()
    figures = {
        "success": 100 * plan.success_share,
        "error": 100 * plan.error_share,
        "health_interval": plan.health_interval_s,
        "trial": plan.trial.seconds,
    }
    return {"stages": "10%, 100%"} | dict.fromkeys(_NAMES, "") | {name: f"{it:g}" for name, it in figures.items()}


def _plan(form: Mapping[str, str]) -> Plan:
    """The plan that was typed. Raises ``ConfigurationError`` for invalid values."""
    return typed_plan(
        stages=form.get("stages", ""),
        success_percent=_figure(form, "success"),
        error_percent=_figure(form, "error"),
        health_interval_s=_figure(form, "health_interval"),
        trial={
            "seconds": _figure(form, "trial"),
            **{
                name: _figure(form, name) if form.get(name, "").strip() else None
                for name in ("min_accuracy", "max_accuracy_loss", "max_latency_ms")
            },
        },
    )


def _figure(form: Mapping[str, str], name: str) -> float:
    typed = form.get(name, "")
    try:
        return float(typed)
    except ValueError as error:
        raise ConfigurationError(f"{_NAMES[name]}: {typed!r} is not a number") from error


def _to_rollout(rollout: int) -> Response:
    return RedirectResponse(f"{PATH}/rollouts/{rollout}", status.HTTP_303_SEE_OTHER)


def _form_page(
    request: Request,
    desk: Desk,
    release: int,
    typed: Mapping[str, str],
    told: str = "",
    code: int = status.HTTP_200_OK,
) -> Response:
    with desk.store.reading() as tx:
        row = release_row(tx, release)
        groups, devices = tx.devices.groups(), len(chosen_exports(tx, row.manifest))
    return page(request, "new_rollout.html", code=code, told=told, row=row, typed=typed, groups=groups, devices=devices)


def _rollout_page(
    request: Request,
    desk: Desk,
    rollout: int,
    state: AssignmentStatus | Literal[""] = "",
    number: int = 1,
    *,
    told: str = "",
    code: int = status.HTTP_200_OK,
) -> Response:
    with desk.store.reading() as tx:
        known = known_rollout(tx, rollout)
        tally, counts = tx.assignments.by_stage(rollout), tx.assignments.standings(rollout)
        last = last_page(counts[state] if state else sum(counts.values()))
        number = min(number, last)
        rows = release_rows(tx, tx.assignments.standing(rollout, state or None, ROWS, ROWS * (number - 1)), desk.sizes)
        commands = commands_for(tx, known)
    return page(
        request,
        "rollout.html",
        own=f"{PATH}/rollouts/{rollout}",
        code=code,
        told=told,
        known=known,
        word=word_of_rollout(known.status),
        commands=[(command.value, _WORDS[command]) for command in commands],
        stages=stages_of(known, tally),
        standings=[(it.value, word_of_standing(it).text) for it in AssignmentStatus],
        devices=sum(counts.values()),
        healthy=counts[AssignmentStatus.HEALTHY],
        lost=sum(counts[it] for it in _LOST),
        rows=rows,
        state=state.value if state else "",
        number=number,
        last=last,
    )
