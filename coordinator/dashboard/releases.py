"""The pages of releases: their exports and accuracy, who has signed, and the form that takes another signature.

Secret keys never come here: the file to sign is downloaded and taken to the key, and the signed file is handed in.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, status
from fastapi.responses import RedirectResponse, Response

from coordinator.api.asking import Numbered
from coordinator.dashboard.access import Desk, Form, Opened, Operator, Viewer
from coordinator.dashboard.fleet import ROWS, Number, last_page
from coordinator.dashboard.outcomes import Word, word_of_approval, word_of_rollout
from coordinator.dashboard.pictures import Picture, picture
from coordinator.dashboard.rendering import PATH, page
from coordinator.delivery.approving import (
    approve,
    file_to_sign,
    known_release,
    manifest_of,
    parse_signed,
    signatures_in,
    signers,
)
from coordinator.delivery.roots import current_root
from coordinator.delivery.starting import chosen_exports, open_rollout
from coordinator.rounds.tasks import known_task
from coordinator.store.database import Transaction
from coordinator.store.records import ReleaseRecord, RolloutRecord
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.releases import Export, ReleaseManifest

router = APIRouter()


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """A release in figures; ``rollout`` is its newest rollout, if it has one."""

    release: ReleaseRecord
    manifest: ReleaseManifest
    word: Word
    have: int
    needed: int
    rollout: RolloutRecord | None
    rollout_word: Word | None

    @property
    def accuracy(self) -> float:
        """The accuracy of its best export on the task's test examples, from 0 to 1."""
        return max(export.accuracy for export in self.manifest.exports)

    @property
    def sizes_bytes(self) -> tuple[int, int]:
        """The sizes of its smallest and its largest file."""
        sizes = [export.size_bytes for export in self.manifest.exports]
        return min(sizes), max(sizes)

    @property
    def may_go_out(self) -> bool:
        """Whether devices accept the release: it has enough signatures and has not expired."""
        return self.have >= self.needed and self.manifest.expires_s > time.time()


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A model file of a release, and the number of devices by profile for which it is the best."""

    export: Export
    picture: Picture | None
    devices: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A release key; ``counts`` if it is one of the current root of trust."""

    name: str
    has_signed: bool
    counts: bool = True


@router.get("/releases")
def show_releases(
    request: Request,
    desk: Opened,
    _: Viewer,
    task: Annotated[str, Query(pattern=r"^[a-z0-9-]{0,64}$")] = "",
    number: Number = 1,
) -> Response:
    """One page of the releases of a task, or of all, newest first."""
    chosen = task or None
    with desk.store.reading() as tx:
        if chosen is not None:
            known_task(tx, chosen)
        last = last_page(tx.releases.count(chosen))
        number = min(number, last)
        rows = _rows(tx, tx.releases.newest_first(chosen, ROWS, ROWS * (number - 1)))
        tasks = tx.releases.tasks()
    return page(request, "releases.html", tasks=tasks, task=task, rows=rows, number=number, last=last)


@router.get("/releases/{release}")
def show_release(request: Request, desk: Opened, _: Viewer, release: Numbered) -> Response:
    """One release: what to inspect before it is signed, and who has signed it."""
    return _release_page(request, desk, release)


@router.get("/releases/{release}/to-sign")
def give_what_to_sign(desk: Opened, _: Viewer, release: Numbered) -> Response:
    """Download the file for ``coordinator release sign``."""
    with desk.store.reading() as tx:
        file = file_to_sign(known_release(tx, release))
    return Response(
        file,
        media_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="release-{release}.json"'},
    )


@router.post("/releases/{release}/approve")
def approve_release(request: Request, desk: Opened, who: Operator, form: Form, release: Numbered) -> Response:
    """Add the signatures from a file that was signed elsewhere; if one is refused, show the release with the error."""
    signed = form.get("signed", "")
    with desk.store.reading() as tx:
        known_release(tx, release)
    try:
        given = signatures_in(parse_signed(signed.encode()))
        with desk.store.transaction() as tx:
            approve(tx, release, given, time.time(), who.name)
    except ConfigurationError as error:
        return _release_page(request, desk, release, signed, str(error), status.HTTP_400_BAD_REQUEST)
    return RedirectResponse(f"{PATH}/releases/{release}", status.HTTP_303_SEE_OTHER)


def release_row(tx: Transaction, release: int) -> ReleaseRow:
    """One release in figures. Raises ``ConfigurationError`` if there is none with this number."""
    return _rows(tx, [known_release(tx, release)])[0]


def _rows(tx: Transaction, found: Sequence[ReleaseRecord]) -> list[ReleaseRow]:
    newest = {known.release: known for known in tx.rollouts.of_releases([known.release for known in found])}
    return [_row(tx, known, newest.get(known.release)) for known in found]


def _row(tx: Transaction, known: ReleaseRecord, rollout: RolloutRecord | None) -> ReleaseRow:
    manifest, (have, needed) = manifest_of(known), signers(tx, known)
    word = word_of_approval(needed - have, has_expired=manifest.expires_s <= time.time())
    rollout_word = None if rollout is None else word_of_rollout(rollout.status)
    return ReleaseRow(known, manifest, word, have, needed, rollout, rollout_word)


def _release_page(
    request: Request, desk: Desk, release: int, signed: str = "", told: str = "", code: int = status.HTTP_200_OK
) -> Response:
    with desk.store.reading() as tx:
        row = release_row(tx, release)
        rollouts = [(known, word_of_rollout(known.status)) for known in reversed(tx.rollouts.of_releases([release]))]
        values = {
            "keys": _keys(tx, row.release),
            "exports": _exports(tx, desk, row),
            "open_rollout": open_rollout(tx, row.release.task),
        }
    own = f"{PATH}/releases/{release}"
    return page(
        request, "release.html", code=code, own=own, told=told, row=row, rollouts=rollouts, signed=signed, **values
    )


def _keys(tx: Transaction, known: ReleaseRecord) -> list[KeyRow]:
    """The current release keys, then the keys that have signed but no longer count."""
    trusted, signed = current_root(tx).release.keys, [each.key for each in known.signatures]
    rows = [KeyRow(key.hex()[:16], key in signed) for key in trusted]
    return rows + [KeyRow(key.hex()[:16], has_signed=True, counts=False) for key in signed if key not in trusted]


def _exports(tx: Transaction, desk: Desk, row: ReleaseRow) -> list[ExportRow]:
    """Each model file, with the devices that would run it now, by profile, most common profile first."""
    profiles: dict[str, Counter[str]] = {}
    for device, export in chosen_exports(tx, row.manifest):
        profiles.setdefault(export.name, Counter())[device.profile] += 1
    sizes = desk.sizes.of(tx.versions.latest(row.release.task))
    return [
        ExportRow(
            export,
            None if sizes is None else picture(export.submodel, sizes),
            tuple(profiles.get(export.name, Counter()).most_common()),
        )
        for export in row.manifest.exports
    ]
