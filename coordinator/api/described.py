"""The API's own page about itself: every operation on one page that loads nothing, from anywhere."""

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
    """Add the page.

    FastAPI's own has a browser load and run scripts of others', as the one who is logged in to the dashboard beside
    it, and is empty where there is no way to them.
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
