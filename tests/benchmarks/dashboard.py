"""The first view of the dashboard: from the start of navigation until the fleet's table is shown, by a real browser.

The store has a thousand devices and twenty rounds of theirs. The server is a process that has just been started, and
the browser has never seen the page. The clock is the browser's own (``performance.now``), read once the frame after the
table's last row has been drawn; the figure is the median of five such starts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from coordinator.api.access import make_token
from coordinator.store.states import AccessRole
from tests.benchmarks._measure import Figure, show
from tests.e2e.test_api_process import ask, serving
from tests.support.browser import Tab, chromium
from tests.support.filled_store import fill_state

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BAR_S = 1.0
_DEVICES, _ROUNDS, _STARTS = 1000, 20, 5
_SHOWN = """() => new Promise((shown) => {
  const look = () => document.readyState !== "loading" && document.querySelectorAll("tbody tr").length
    ? requestAnimationFrame(() => setTimeout(() => shown(performance.now() / 1000))) : setTimeout(look, 1);
  look();
})"""


def run() -> Figure:
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        state = Path(name)
        store = fill_state(state, _DEVICES, _ROUNDS)
        token = make_token(store, "bench", AccessRole.VIEWER, 1, time.time(), "a benchmark")
        store.close()
        starts = [_start(browser, state, token) for _ in range(_STARTS)]
    first_s, again_s, rounds_s = (statistics.median(column) for column in list(zip(*starts, strict=True))[:3])
    resident_mb = statistics.median(start[3] for start in starts)
    rows = [
        ("first view of the fleet", f"{first_s:.2f} s"),
        ("again, by another browser", f"{again_s:.2f} s"),
        ("the rounds", f"{rounds_s:.2f} s"),
        ("server, resident", f"{resident_mb:.0f} MB"),
    ]
    show(f"dashboard: {_DEVICES} devices, {_ROUNDS} rounds; medians of {_STARTS} starts of the server", rows)
    more = {"again_s": round(again_s, 3), "rounds_s": round(rounds_s, 3), "resident_mb": round(resident_mb, 1)}
    return Figure("dashboard", first_s, BAR_S, f"s until {_DEVICES} devices are shown", more)


def _start(browser: Browser, state: Path, token: str) -> tuple[float, float, float, float]:
    """Seconds of each view, and the server's memory after them in 10^6 bytes."""
    with serving(state) as (port, process):
        address = f"http://127.0.0.1:{port}"
        ask(f"{address}/health")
        with Tab(browser) as tab:
            tab.log_in(f"{address}/dashboard/tasks", token)
            cookies = tab.cookies()
        views = [_seconds(browser, f"{address}/dashboard/{page}", cookies) for page in ("fleet", "fleet", "rounds")]
        return views[0], views[1], views[2], psutil.Process(process.pid).memory_info().rss / 1e6


def _seconds(browser: Browser, address: str, cookies: list[dict[str, object]]) -> float:
    """Of one view by a browser with a session and an empty cache."""
    with Tab(browser) as tab:
        tab.take(cookies)
        tab.page.goto(address, wait_until="commit")
        return float(tab.page.evaluate(_SHOWN))
