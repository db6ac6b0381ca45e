"""Access to the dashboard: a token logs in, a cookie keeps the session, and the token's role decides what is allowed.

The cookie holds the session's id. It is sent to this path only, and neither scripts nor other sites can use it. A
request that changes something has to come from a page of this server, which the browser says in ``Sec-Fetch-Site``, or
in ``Origin`` if it is older. Every request checks the token again, so that a session ends with its token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Depends, HTTPException, Query, Request, status
from fastapi.responses import RedirectResponse, Response

from coordinator.api.access import bearer_by, bearer_of
from coordinator.api.limiting import Guard
from coordinator.dashboard.pictures import ModelSizes
from coordinator.dashboard.rendering import PATH, page
from coordinator.dashboard.sessions import LASTS_S, Sessions
from coordinator.store.database import Store
from coordinator.store.records import TokenRecord
from coordinator.store.states import AccessRole

_COOKIE = "raffm_session"
_MAX_FORM_BYTES = 64 * 1024
_MAX_FIELDS = 8
router = APIRouter()


@dataclass(frozen=True, slots=True)
class Desk:
    """What the pages share: the store, the state folder, the models' sizes, the sessions, and the rate limits."""

    store: Store
    state_dir: Path
    sizes: ModelSizes
    sessions: Sessions
    guard: Guard


class LoginNeededError(Exception):
    """The visitor is not logged in; ``wanted`` is the address that was requested."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self.wanted = wanted


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _may(role: AccessRole) -> Callable[..., TokenRecord]:
    def check(request: Request, desk: Annotated[Desk, Depends(_desk)]) -> TokenRecord:
        digest = desk.sessions.token_digest(request.cookies.get(_cookie(request), ""))
        with desk.store.reading() as tx:
            known = None if digest is None else bearer_by(tx, digest, time.time())
        if known is None:
            raise LoginNeededError(_wanted(request))
        request.state.visitor = known
        if not known.role.includes(role):
            raise HTTPException(
                status.HTTP_403_FORBIDDEN,
                f"token {known.name!r} has the role {known.role.value}; this needs {role.value}",
            )
        return known

    return check


def _wanted(request: Request) -> str:
    """The address to go to after login: the requested one if it was a page."""
    if request.method != "GET":
        return PATH
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


async def _posted(request: Request) -> Mapping[str, str]:
    """The fields of a form that a page of this server has sent; else 403."""
    said = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin", "").partition("://")[2]
    is_own = said == "same-origin" if said else origin and origin == request.headers.get("host")
    if not is_own:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "the request came from another site: use the button of the page")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            raise HTTPException(
                status.HTTP_413_CONTENT_TOO_LARGE, f"a form has at most {_MAX_FORM_BYTES} bytes: send less"
            )
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError as error:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, f"the form cannot be read: {error}") from error
    return {name: values[-1] for name, values in fields.items()}


Opened = Annotated[Desk, Depends(_desk)]
Viewer = Annotated[TokenRecord, Depends(_may(AccessRole.VIEWER))]
Operator = Annotated[TokenRecord, Depends(_may(AccessRole.OPERATOR))]
Form = Annotated[Mapping[str, str], Depends(_posted)]


@router.get("/login")
def login_page(request: Request, then: Annotated[str, Query(max_length=2000)] = PATH) -> Response:
    """Show the form that asks for a token."""
    return page(request, "login.html", then=then)


@router.post("/login")
def log_in(request: Request, desk: Opened, form: Form) -> Response:
    """Open a session for the bearer of a token, and redirect to the page that was wanted."""
    secret, then = form.get("token", "").strip(), form.get("then", PATH)
    try:
        desk.guard.require_guess(request, secret)
    except HTTPException as error:
        waiting = page(request, "login.html", then=then, told=error.detail, code=error.status_code)
        waiting.headers.update(error.headers or {})
        return waiting
    with desk.store.reading() as tx:
        known = bearer_of(tx, secret, time.time())
    if known is None:
        desk.guard.missed(request, secret)
        told = "the token is unknown, revoked or expired"
        return page(request, "login.html", then=then, told=told, code=status.HTTP_401_UNAUTHORIZED)
    answer = RedirectResponse(then if _is_here(then) else PATH, status.HTTP_303_SEE_OTHER)
    answer.set_cookie(
        _cookie(request),
        desk.sessions.open(known.digest),
        max_age=int(LASTS_S),
        path=PATH,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/logout", dependencies=[Depends(_posted)])
def log_out(request: Request, desk: Opened) -> Response:
    """End the session."""
    desk.sessions.close(request.cookies.get(_cookie(request), ""))
    answer = RedirectResponse(f"{PATH}/login", status.HTTP_303_SEE_OTHER)
    answer.delete_cookie(_cookie(request), path=PATH)
    return answer


async def to_login(_: Request, error: Exception) -> Response:
    """Answer :class:`LoginNeededError` with a redirect to the login page."""
    wanted = error.wanted if isinstance(error, LoginNeededError) else PATH
    return RedirectResponse(f"{PATH}/login?{urlencode({'then': wanted})}", status.HTTP_303_SEE_OTHER)


def _cookie(request: Request) -> str:
    """The name of the cookie, with the port: a browser sends a cookie to every port of the host that has set it."""
    port = request.headers.get("host", "").rpartition(":")[2]
    return f"{_COOKIE}_{port}" if port.isdecimal() else _COOKIE


def _is_here(wanted: str) -> bool:
    """Whether an address belongs to the dashboard; a login never redirects elsewhere."""
    return wanted == PATH or wanted.startswith(f"{PATH}/")
