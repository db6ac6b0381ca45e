"""What the API's routes have in common: the store, a token with the role they need, and answers in pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as StateDir
from typing import Annotated, Any, TypeVar

from fastapi import Depends, HTTPException, Path, Query, Request, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as AnyHTTPException

from coordinator.api.access import bearer_of
from coordinator.api.limiting import Guard
from coordinator.api.schemas import Problem
from coordinator.api.workshop import TAR, Workshop
from coordinator.fleet.folder import Fleet, open_fleet
from coordinator.store.database import Store
from coordinator.store.records import TokenRecord
from coordinator.store.states import AccessRole
from edge_sdk.errors import ConfigurationError, StorageError, StoreAwayError

_MOST = 500
_AWAY_S = 5  # about as long as a restart of the database takes
_T = TypeVar("_T")
Name = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,64}$")]
Numbered = Annotated[int, Path(ge=1, le=2**31 - 1)]
Limit = Annotated[int, Query(ge=1, le=_MOST, description="Maximum number of items in the page.")]
After = Annotated[
    str | None, Query(max_length=64, pattern=r"^[^\x00]*$", description="The `after` of the previous page.")
]
AfterNumber = Annotated[int, Query(ge=0, le=2**31 - 1, description="The `after` of the previous page.")]
_bearer = HTTPBearer(description="A token made by `coordinator token create`.")
Answers = dict[int | str, dict[str, Any]]
"""An operation's possible answers by status code, as FastAPI takes them for the OpenAPI document."""
WAIT: Answers = {
    status.HTTP_429_TOO_MANY_REQUESTS: {
        "model": Problem,
        "description": "Too many requests, or too many wrong tokens.",
        "headers": {
            "Retry-After": {"description": "Seconds until another request is allowed.", "schema": {"type": "integer"}}
        },
    }
}
PROBLEMS: Answers = {
    **WAIT,
    status.HTTP_400_BAD_REQUEST: {"model": Problem},
    status.HTTP_401_UNAUTHORIZED: {"model": Problem},
    status.HTTP_403_FORBIDDEN: {"model": Problem},
    status.HTTP_404_NOT_FOUND: {"model": Problem},
    status.HTTP_422_UNPROCESSABLE_CONTENT: {"model": Problem},
}
ARCHIVE: Answers = {
    status.HTTP_200_OK: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}},
    status.HTTP_409_CONFLICT: {"model": Problem, "description": "Other heavy work is running: try again later."},
}


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _guard(request: Request) -> Guard:
    guard: Guard = request.app.state.guard
    return guard


def _may(role: AccessRole) -> Callable[..., TokenRecord]:
    def check(
        request: Request,
        store: Annotated[Store, Depends(_store)],
        given: Annotated[HTTPAuthorizationCredentials, Depends(_bearer)],
    ) -> TokenRecord:
        guard = _guard(request)
        guard.require_guess(request, given.credentials)
        with store.reading() as tx:
            known = bearer_of(tx, given.credentials, time.time())
        if known is None:
            guard.missed(request, given.credentials)
            raise HTTPException(status.HTTP_401_UNAUTHORIZED, "the token is unknown, revoked or expired")
        guard.require_rate(request, known.name)
        if not known.role.includes(role):
            raise HTTPException(
                status.HTTP_403_FORBIDDEN,
                f"token {known.name!r} has the role {known.role.value}; this needs {role.value}",
            )
        return known

    return check


def _folder(request: Request) -> StateDir:
    state_dir: StateDir | None = request.app.state.state_dir
    if state_dir is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "this API was started without a state folder")
    return state_dir


def _workshop(request: Request) -> Workshop:
    workshop: Workshop = request.app.state.workshop
    return workshop


def _fleet(request: Request) -> Fleet:
    state_dir: StateDir | None = request.app.state.state_dir
    fleet = None if state_dir is None else open_fleet(state_dir)
    if fleet is None:
        raise HTTPException(
            status.HTTP_404_NOT_FOUND,
            "this fleet has no authority: devices cannot enrol; make one by `coordinator fleet init`",
        )
    return fleet


Opened = Annotated[Store, Depends(_store)]
Folder = Annotated[StateDir, Depends(_folder)]
Work = Annotated[Workshop, Depends(_workshop)]
Guarded = Annotated[Guard, Depends(_guard)]
Secured = Annotated[Fleet, Depends(_fleet)]
Viewer = Depends(_may(AccessRole.VIEWER))
Operator = Annotated[TokenRecord, Depends(_may(AccessRole.OPERATOR))]
Admin = Annotated[TokenRecord, Depends(_may(AccessRole.ADMIN))]


def headers_of(error: Exception) -> Mapping[str, str] | None:
    """The headers of the answer to ``error``: its own, or while the database is away, when to ask again."""
    if isinstance(error, AnyHTTPException):
        return error.headers
    return {"Retry-After": str(_AWAY_S)} if isinstance(error, StoreAwayError) else None


def page_of(found: Sequence[_T], key: Callable[[_T], str], limit: int) -> tuple[Sequence[_T], str | None]:
    """The first ``limit`` of ``found``, and the key to ask for the next page with; ``None`` if that was all.

    ``found`` has to have one more than ``limit`` if there is more.
    """
    some = found[:limit]
    return some, key(some[-1]) if len(found) > limit else None


def listed(
    found: Sequence[_T], key: Callable[[_T], str], limit: int, after: str | None
) -> tuple[Sequence[_T], str | None]:
    """:func:`page_of`, but of everything after the one with key ``after``. Answers 400 if that no longer exists."""
    if after is None:
        return page_of(found, key, limit)
    for number, one in enumerate(found):
        if key(one) == after:
            return page_of(found[number + 1 :], key, limit)
    raise HTTPException(
        status.HTTP_400_BAD_REQUEST, f"after={after!r} does not exist any more: begin again with the first page"
    )


def known_or_404(look: Callable[[], _T]) -> _T:
    """The result of ``look``. Answers 404 if it raises ``ConfigurationError``, that is, if there is no such thing."""
    try:
        return look()
    except StorageError:
        raise
    except ConfigurationError as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, str(error)) from error
