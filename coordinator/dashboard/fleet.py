"""The pages of the fleet: which devices are there, what each has to spare and trains; and the page of one device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, status
from fastapi.responses import Response

from coordinator.api.asking import Name
from coordinator.dashboard.access import Opened, Viewer
from coordinator.dashboard.outcomes import Word, word_of_offer, word_of_release
from coordinator.dashboard.pictures import ModelSizes, Picture, Sizes, picture
from coordinator.dashboard.rendering import page
from coordinator.store.database import Transaction
from coordinator.store.devices import DeviceFilter
from coordinator.store.records import AssignmentRecord, DeviceRecord, OfferRecord, UpdateRecord
from coordinator.store.states import Phase

ROWS = 50
_LARGE = (560.0, 18.0)
"""The width of the large picture, and the height of one of its rows, in SVG units."""
router = APIRouter()
Number = Annotated[int, Query(alias="page", ge=1, le=1_000_000)]


class Presence(str, Enum):
    """Which devices the fleet's page shows."""

    ALL = ""
    ONLINE = "online"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class FleetRow:
    """A device with its newest offer, if it ever had one."""

    device: DeviceRecord
    offer: OfferRecord | None
    picture: Picture | None
    word: Word | None


@dataclass(frozen=True, slots=True)
class OfferRow:
    """An offer of one device, with its outcome and its update, if there is one."""

    offer: OfferRecord
    picture: Picture | None
    word: Word
    update: UpdateRecord | None


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """An assignment of a release to a device, with its status."""

    release: AssignmentRecord
    picture: Picture | None
    word: Word


@router.get("/fleet")
def show_fleet(
    request: Request,
    desk: Opened,
    _: Viewer,
    q: Annotated[str, Query(max_length=64, pattern=r"^[^\x00]*$")] = "",
    state: Presence = Presence.ALL,
    group: Annotated[str, Query(pattern=r"^[a-z0-9-]{0,64}$")] = "",
    number: Number = 1,
) -> Response:
    """One page of the fleet's devices."""
    online = None if state is Presence.ALL else state is Presence.ONLINE
    wanted = DeviceFilter(q.strip(), online, group or None)
    with desk.store.reading() as tx:
        found = tx.devices.count(wanted)
        last = last_page(found)
        number = min(number, last)
        total, online_count = tx.devices.count(DeviceFilter()), tx.devices.count(DeviceFilter(online=True))
        groups = tx.devices.groups()
        rows = fleet_rows(tx, tx.devices.search(wanted, ROWS, ROWS * (number - 1)), desk.sizes)
    return page(
        request,
        "fleet.html",
        total=total,
        online=online_count,
        groups=groups,
        rows=rows,
        q=q,
        state=state.value,
        group=group,
        found=found,
        number=number,
        last=last,
    )


@router.get("/devices/{device}")
def show_device(
    request: Request,
    desk: Opened,
    _: Viewer,
    device: Name,
    number: Number = 1,
) -> Response:
    """One device: what it reports of itself, what it runs, and every round in which it was asked."""
    with desk.store.reading() as tx:
        known = tx.devices.get(device)
        if known is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, f"there is no device {device!r}")
        offers = tx.offers.history(device, ROWS + 1, ROWS * (number - 1))
        newest = next(iter(fleet_rows(tx, [known], desk.sizes)))
        large = _large(newest.offer, _sizes(tx, [newest.offer], desk.sizes))
        rows = offer_rows(tx, offers[:ROWS], desk.sizes)
        runs = release_rows(tx, tx.assignments.of_device(device), desk.sizes)
    return page(
        request,
        "device.html",
        known=known,
        newest=newest,
        large=large,
        rows=rows,
        runs=runs,
        number=number,
        has_more=len(offers) > ROWS,
    )


def last_page(rows: int) -> int:
    """The number of the last page if there are ``rows`` rows."""
    return max(1, math.ceil(rows / ROWS))


def fleet_rows(tx: Transaction, devices: Sequence[DeviceRecord], sizes: ModelSizes) -> list[FleetRow]:
    """Each device with its newest offer."""
    newest = tx.offers.newest_of([known.id for known in devices])
    models, open_rounds = _sizes(tx, newest.values(), sizes), _open_rounds(tx, newest.values())
    rows = list[FleetRow]()
    for known in devices:
        offer = newest.get(known.id)
        word = None if offer is None else word_of_offer(offer, is_open=(offer.task, offer.round) in open_rounds)
        rows.append(FleetRow(known, offer, _small(offer, models), word))
    return rows


def offer_rows(tx: Transaction, offers: Sequence[OfferRecord], sizes: ModelSizes) -> list[OfferRow]:
    """Each offer with its outcome; all have to be of one device."""
    models, open_rounds = _sizes(tx, offers, sizes), _open_rounds(tx, offers)
    keys = [(offer.task, offer.round) for offer in offers]
    updates = tx.updates.of_device(offers[0].device, keys) if offers else {}
    return [
        OfferRow(offer, _small(offer, models), word_of_offer(offer, is_open=key in open_rounds), updates.get(key))
        for key, offer in zip(keys, offers, strict=True)
    ]


def release_rows(tx: Transaction, releases: Sequence[AssignmentRecord], sizes: ModelSizes) -> list[ReleaseRow]:
    """Each assignment with its picture."""
    models = _sizes(tx, releases, sizes)
    return [ReleaseRow(one, _small(one, models), word_of_release(one)) for one in releases]


def _small(known: OfferRecord | AssignmentRecord | None, models: Mapping[str, Sizes | None]) -> Picture | None:
    own = None if known is None else models[known.task]
    return None if known is None or own is None else picture(known.submodel, own)


def _large(known: OfferRecord | None, models: Mapping[str, Sizes | None]) -> Picture | None:
    own = None if known is None else models[known.task]
    if known is None or own is None:
        return None
    width, row = _LARGE
    return picture(known.submodel, own, width, row * own.layers)


def _sizes(
    tx: Transaction, found: Iterable[OfferRecord | AssignmentRecord | None], sizes: ModelSizes
) -> dict[str, Sizes | None]:
    """The sizes of each task's newest model; ``None`` for a task without a readable one."""
    return {task: sizes.of(tx.versions.latest(task)) for task in {one.task for one in found if one is not None}}


def _open_rounds(tx: Transaction, offers: Iterable[OfferRecord]) -> set[tuple[str, int]]:
    """The rounds of these offers that are still collecting."""
    keys = {(offer.task, offer.round) for offer in offers}
    found = ((key, tx.rounds.get(*key)) for key in keys)
    return {key for key, known in found if known is not None and known.phase is Phase.COLLECTING}
