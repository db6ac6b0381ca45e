"""A real browser for tests: the system's Chromium, which reaches this machine alone and must not complain.

All but loopback goes by way of a proxy that is not there. Tests skip, with the reason, where there is no Chromium or
nothing to drive it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

PATIENCE_MS = 60_000.0
DESK, PHONE = (1280, 800), (375, 760)
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser without a window."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("Chromium is not installed (apt install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    arguments = ["--proxy-server=127.0.0.1:9", *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # it refuses root
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page in a browser of its own kind: size and theme. ``outside`` and ``complaints`` are what went wrong."""

    def __init__(self, browser: Browser, size: tuple[int, int] = DESK, **settings: Any) -> None:
        viewport = {"width": size[0], "height": size[1]}
        self._context = browser.new_context(viewport=viewport, **settings)
        self._context.set_default_timeout(PATIENCE_MS)
        self.outside: list[str] = []
        self.complaints: list[str] = []
        self._context.on("request", self._asked)
        self.page: Page = self._context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def __enter__(self) -> Tab:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def cookies(self) -> list[dict[str, Any]]:
        return [{**cookie} for cookie in self._context.cookies()]

    def take(self, cookies: list[dict[str, Any]]) -> None:
        """Those of another tab."""
        self._context.add_cookies(cookies)

    def log_in(self, address: str, secret: str) -> Page:
        """To the page at ``address``, by way of the form."""
        self.page.goto(address)
        self.page.get_by_label("Token").fill(secret)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(address)
        return self.page

    def check(self) -> None:
        """Nothing left this machine, and the browser had nothing to complain of."""
        assert (self.outside, self.complaints) == ([], [])

    def _asked(self, request: Request) -> None:
        if not ip_address(urlsplit(request.url).hostname or "").is_loopback:
            self.outside.append(request.url)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)
