"""Mounts the dashboard on the API's server: its pages and files under ``/dashboard``, and their headers."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.api.asking import headers_of
from coordinator.config import CoordinatorConfig
from coordinator.dashboard import access, fleet, releases, rollouts, rounds, running, tasks
from coordinator.dashboard.pictures import ModelSizes
from coordinator.dashboard.rendering import PATH, page
from coordinator.dashboard.sessions import Sessions
from coordinator.store.database import Store
from edge_sdk.errors import ConfigurationError, RaffmError
from edge_sdk.transport.blob_folder import BlobFolder

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_FILES = Path(__file__).parent / "static"


def add_dashboard(app: FastAPI, store: Store, state_dir: Path) -> str:
    """Add the dashboard of ``store`` to ``app`` and return the path that it is under.

    ``state_dir`` contains the blobs; relative paths in tasks start there.
    """
    blobs = BlobFolder(CoordinatorConfig(state_dir=state_dir, broker="").blob_dir)
    desk = access.Desk(store, state_dir.absolute(), ModelSizes(blobs), Sessions(), app.state.guard)
    app.mount(PATH, _pages(desk))
    app.add_api_route("/", _first_page, include_in_schema=False)
    return PATH


def _pages(desk: access.Desk) -> FastAPI:
    pages = FastAPI(
        openapi_url=None,
        exception_handlers={
            access.LoginNeededError: access.to_login,
            HTTPException: _told,
            RequestValidationError: _told,
            RaffmError: _told,
        },
    )
    pages.state.desk = desk
    pages.add_middleware(GZipMiddleware, compresslevel=5)
    pages.add_middleware(_Headers)
    pages.add_api_route("/", _first_page)
    for module in (access, fleet, rounds, tasks, releases, rollouts, running):
        pages.include_router(module.router)
    pages.mount("/static", StaticFiles(directory=_FILES))
    return pages


def _first_page() -> Response:
    return RedirectResponse(f"{PATH}/fleet", status.HTTP_303_SEE_OTHER)


async def _told(request: Request, error: Exception) -> Response:
    """Show an error page with the error in one line."""
    if isinstance(error, HTTPException):
        code, told = error.status_code, str(error.detail)
    elif isinstance(error, RequestValidationError):
        code, told = status.HTTP_400_BAD_REQUEST, "this address is not valid: use a link of the dashboard"
    elif isinstance(error, ConfigurationError):
        code, told = status.HTTP_404_NOT_FOUND, str(error)
    else:
        code, told = status.HTTP_503_SERVICE_UNAVAILABLE, str(error)
    answer = page(request, "error.html", told=told, code=code)
    answer.headers.update(headers_of(error) or {})
    return answer


class _Headers:
    """Adds security headers to every answer. Browsers store no pages, and check whether a stored file has changed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                is_file = scope["path"].startswith(f"{PATH}/static/")
                said = _HEADERS | {"Cache-Control": "no-cache" if is_file else "no-store"}
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in said.items()]
            await send(message)

        await self._app(scope, receive, say)
