"""The API's own documentation page: every operation on one page, which loads nothing from elsewhere."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader

PATH = "/docs"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_templates = Environment(loader=PackageLoader("coordinator.api"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def describe(app: FastAPI) -> None:
    """Add the page to ``app``.

    FastAPI's own page makes the browser load scripts from other servers and run them with the session of a user of the
    dashboard, which is on the same server. Without access to those servers it stays empty.
    """

    def show() -> HTMLResponse:
        document = app.openapi()
        by_tag: dict[str, list[tuple[str, str, object]]] = {}
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                by_tag.setdefault(operation["tags"][0], []).append((method, path, operation))
        text = _templates.get_template("operations.html").render(document=document, by_tag=by_tag)
        return HTMLResponse(text, headers=_HEADERS)

    app.add_api_route(PATH, show, include_in_schema=False)
