"""Releases and rollouts over HTTP: inspected, approved with signatures made elsewhere, rolled out and stopped.

Releases are made on the coordinator's machine. No secret key ever reaches the API.
"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Body, status
from pydantic import JsonValue

from coordinator.api.asking import (
    PROBLEMS,
    AfterNumber,
    Limit,
    Numbered,
    Opened,
    Operator,
    Viewer,
    known_or_404,
    page_of,
)
from coordinator.api.schemas import Assignment, Page, Release, Rollout
from coordinator.delivery.approving import approve, known_release, parse_signed, signatures_in
from coordinator.delivery.plans import read_plan
from coordinator.delivery.rollout import Command
from coordinator.delivery.starting import command_rollout, known_rollout, start_rollout

releases = APIRouter(tags=["releases"], dependencies=[Viewer], responses=PROBLEMS)


@releases.get("/releases")
def list_releases(store: Opened, limit: Limit = 100, after: AfterNumber = 0) -> Page[Release]:
    """All releases, oldest first."""
    with store.reading() as tx:
        some, more = page_of(tx.releases.page(limit + 1, after), lambda known: str(known.release), limit)
        return Page(items=[Release.of(tx, known) for known in some], after=more)


@releases.get("/releases/{release}")
def show_release(store: Opened, release: Numbered) -> Release:
    """One release with its exports, and the file to sign."""
    with store.reading() as tx:
        return Release.of(tx, known_or_404(lambda: known_release(tx, release)))


@releases.post("/releases/{release}/approve")
def approve_release(
    store: Opened, who: Operator, release: Numbered, signed: Annotated[dict[str, JsonValue], Body()]
) -> Release:
    """Add the signatures in a file of `coordinator release sign`; the root of trust says whose count."""
    given = signatures_in(parse_signed(msgspec.json.encode(signed)))
    with store.transaction() as tx:
        known_or_404(lambda: known_release(tx, release))
        approve(tx, release, given, time.time(), who.name)
    return show_release(store, release)


@releases.get("/rollouts")
def list_rollouts(store: Opened, limit: Limit = 100, after: AfterNumber = 0) -> Page[Rollout]:
    """All rollouts, oldest first."""
    with store.reading() as tx:
        some, more = page_of(tx.rollouts.page(limit + 1, after), lambda known: str(known.rollout), limit)
        return Page(items=[Rollout.of(tx, known) for known in some], after=more)


@releases.post("/releases/{release}/rollouts", status_code=status.HTTP_201_CREATED)
def begin_rollout(
    store: Opened, who: Operator, release: Numbered, plan: Annotated[dict[str, JsonValue], Body()]
) -> Rollout:
    """Start the rollout of an approved release by a plan: stages, thresholds, health interval, trial."""
    wanted = read_plan(plan)
    with store.transaction() as tx:
        known_or_404(lambda: known_release(tx, release))
        return Rollout.of(tx, start_rollout(tx, release, wanted, time.time(), who.name))


@releases.get("/rollouts/{rollout}")
def show_rollout(store: Opened, rollout: Numbered) -> Rollout:
    """One rollout, with the number of devices by status."""
    with store.reading() as tx:
        return Rollout.of(tx, known_or_404(lambda: known_rollout(tx, rollout)))


@releases.get("/rollouts/{rollout}/assignments")
def list_assignments(store: Opened, rollout: Numbered, limit: Limit = 100, after: AfterNumber = 0) -> Page[Assignment]:
    """The devices of a rollout: the export, the status, and why a device went back."""
    with store.reading() as tx:
        known_or_404(lambda: known_rollout(tx, rollout))
        found = tx.assignments.page(rollout, limit + 1, after)
    some, more = page_of(found, lambda known: str(known.number), limit)
    return Page(items=[Assignment.model_validate(known) for known in some], after=more)


@releases.post("/rollouts/{rollout}/{command}")
def say_to_rollout(store: Opened, who: Operator, rollout: Numbered, command: Command) -> Rollout:
    """Pause, resume or halt the rollout, or roll every device back."""
    with store.transaction() as tx:
        known_or_404(lambda: known_rollout(tx, rollout))
        return Rollout.of(tx, command_rollout(tx, rollout, command, time.time(), who.name))
