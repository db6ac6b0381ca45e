"""The dashboard without a browser: a client of its pages, who logs in, and what a page tells."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient
from httpx import Response

from coordinator.api.access import make_token
from coordinator.api.app import create_app
from coordinator.dashboard.app import add_dashboard
from coordinator.store.database import Store
from coordinator.store.states import AccessRole

AT = "/dashboard"
OWN = {"Origin": "http://testserver"}
FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://["},
    {"Origin": "http://testserver", "Sec-Fetch-Site": "same-site"},
    {"Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"},
)
"""What browsers say of a form on another site."""
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


@contextmanager
def client_of(store: Store, state_dir: Path) -> Iterator[TestClient]:
    """Of the pages over ``store``; it says that its forms are theirs."""
    app = create_app(store)
    add_dashboard(app, store, state_dir)
    with TestClient(app, follow_redirects=False, headers=OWN) as made:
        yield made


def log_in(client: TestClient, store: Store, role: AccessRole, name: str = "ann", **fields: str) -> Response:
    secret = make_token(store, name, role, 1, time.time(), "a test")
    return client.post(f"{AT}/login", data={"token": secret} | fields)


def told(answer: Response) -> str:
    """The one line of a page that says what is wrong."""
    return html.unescape(answer.text.partition('role="alert">')[2].partition("</p>")[0])
