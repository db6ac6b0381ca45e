"""The dashboard in a real browser: quick with a thousand devices, on a phone too, and a task from its form to its end.

The pictures in the README are made by the last test, where ``--screenshots`` asks for them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.api.access import make_token
from coordinator.store.opening import open_store
from coordinator.store.states import AccessRole, AssignmentStatus
from tests.e2e.test_api_process import ask, serving
from tests.support.browser import DESK, PHONE, Tab, chromium
from tests.support.filled_store import TASK, fill_state

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.support.small_fleet import SmallFleet

pytestmark = pytest.mark.xdist_group("dashboard")  # one browser and one thousand devices for all of them
PAGES = ("devices/android-0003", "rounds", "fleet", "tasks", f"tasks/{TASK}", "releases", "new-task")
FOLDER = Path(__file__).parents[2] / "coordinator" / "dashboard" / "screenshots"
PICTURES = (
    ("fleet", "fleet", DESK, "light"),
    ("rounds", "rounds", DESK, "dark"),
    ("device", "devices/gateway", DESK, "light"),
    ("phone", "fleet", PHONE, "light"),
)
NAMES = ("vera", "olga", "ada")
MOST_PICTURE_BYTES = 150_000
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
CONTRAST = Path(__file__).parents[1].joinpath("support", "contrast.js").read_text(encoding="utf-8")
TOML = """
name = "{name}"
model_dir = "{model}"
calibration_file = "{folder}/calibration.csv"
test_file = "{folder}/test.csv"
rounds = {rounds}
min_devices = {devices}

[recipe]
learning_rate = 3e-4
batch_size = 16
epochs = 3
max_tokens = 32
max_steps = 9
"""


class Site:
    """A dashboard that is served, and a token of each role."""

    def __init__(self, address: str, tokens: Mapping[AccessRole, str]) -> None:
        self.address, self.tokens = address, tokens

    def at(self, path: str) -> str:
        return f"{self.address}/dashboard/{path}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:  # noqa: ARG001 - skips first
    """Of a thousand devices, one of which says something evil."""
    state = tmp_path_factory.mktemp("state")
    store = fill_state(state, 1000, 1)
    with store.transaction() as tx:
        tx.offers.failed(TASK, 1, "android-0003", 1.0, detail=EVIL)
    store.close()
    with site_of(state) as served:
        yield served


@contextmanager
def site_of(state: Path) -> Iterator[Site]:
    """What a coordinator's state folder shows."""
    store = open_store(state)
    tokens = {
        role: make_token(store, name, role, 1, time.time(), "a test")
        for role, name in zip(AccessRole, NAMES, strict=True)
    }
    store.close()
    with serving(state) as (port, _):
        address = f"http://127.0.0.1:{port}"
        ask(f"{address}/health")
        yield Site(address, tokens)


def overflow(page: Page) -> int:
    """By how many pixels a page is wider than the screen."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_fleet_of_a_thousand_is_shown_in_pages_and_searched(browser: Browser, site: Site) -> None:
    with Tab(browser) as tab:
        page = tab.log_in(site.at("fleet"), site.tokens[AccessRole.VIEWER])
        assert page.get_by_text("1,000 devices, 941 online").is_visible()
        rows = page.locator("tbody tr")
        assert rows.count() == 50
        assert rows.locator("svg.part").count() == 50
        page.get_by_role("link", name="Next").click()
        page.get_by_text("Page 2 of 20").wait_for()
        page.get_by_label("Device or profile").fill("zero")  # found while it is typed
        page.get_by_text("Page 1 of 4").wait_for()
        assert set(rows.locator("th small").all_inner_texts()) == {"raspberry-pi-zero-2-w"}
        page.get_by_label("Online or not").select_option("Offline")
        page.get_by_text("Page 1 of").wait_for(state="detached")
        assert page.url == site.at("fleet?q=zero&state=offline")
        page.get_by_label("Device or profile").fill("nobody")
        page.get_by_text("No device is like that.").wait_for()
        assert not page.get_by_text("New task").count()
        tab.check()


def test_every_page_fits_and_reads_on_a_phone_and_on_a_desk(browser: Browser, site: Site) -> None:
    for size, scheme, paths in ((PHONE, "light", PAGES), (DESK, "dark", PAGES[:2])):
        with Tab(browser, size, color_scheme=scheme) as tab:
            page = tab.log_in(site.at("fleet"), site.tokens[AccessRole.OPERATOR])
            for path in paths:
                page.goto(site.at(path))
                assert (overflow(page), page.evaluate(CONTRAST)) == (0, []), (path, scheme)
            tab.check()
            page.evaluate(
                "document.querySelector('h1').style.cssText = 'min-width: 2000px; color: #777'"
            )  # the controls
            assert (overflow(page) > 0, len(page.evaluate(CONTRAST))) == (True, 1)


def test_what_a_device_says_is_text_and_no_script_of_a_page_runs(browser: Browser, site: Site) -> None:
    with Tab(browser) as tab:
        page = tab.log_in(site.at("devices/android-0003"), site.tokens[AccessRole.VIEWER])
        assert page.get_by_text(EVIL).first.is_visible()
        assert page.title() == "android-0003 · raffm-edge"
        tab.check()
        page.evaluate("document.head.append(Object.assign(document.createElement('style'), {textContent: 'p {}'}))")
        page.evaluate("fetch('https://192.0.2.1/').catch(() => 0)")
        page.evaluate("try { document.body.innerHTML = '<p>' } catch {}")
        told = "\n".join(tab.complaints)
        assert all(words in told for words in ("inline style", "Fetch API", "TrustedHTML")), told


def test_request_that_would_leave_this_machine_is_seen(browser: Browser) -> None:
    """The control of what :meth:`Tab.check` says."""
    with Tab(browser) as tab:
        with pytest.raises(Exception, match="ERR_PROXY_CONNECTION_FAILED"):
            tab.page.goto("http://192.0.2.1/")
        with pytest.raises(AssertionError):
            tab.check()


def test_login_is_refused_and_allowed_and_ends(browser: Browser, site: Site) -> None:
    with Tab(browser, color_scheme="light") as tab:
        page = tab.page
        page.goto(site.at("rounds"))
        page.get_by_label("Token").fill("raffm_nobody")
        page.get_by_role("button", name="Log in").click()
        assert page.get_by_role("alert").inner_text() == "the token is unknown, revoked or expired"
        assert tab.cookies() == []
        tab.complaints.clear()  # Chromium tells of the 401
        tab.log_in(site.at("rounds"), site.tokens[AccessRole.VIEWER])
        (cookie,) = tab.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/dashboard")
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        for _ in range(2):
            page.get_by_role("button", name=re.compile("Auto|Light")).click()
        page.reload()
        assert page.evaluate(ground) != light, "the switch says dark, whatever the system says"
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url(site.at("login"))
        page.goto(site.at("fleet"))
        assert page.url == site.at("login?then=%2Fdashboard%2Ffleet")
        tab.check()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_task_is_created_watched_paused_stopped_and_released_in_the_browser(
    browser: Browser, fleet: SmallFleet
) -> None:
    limits = limits_mib()
    fleet.serve()
    fleet.wait_until((fleet.state / "root.json").exists, "a root of trust")
    for name, limit_mib in limits.items():
        fleet.agent(name, limit_mib)
    with site_of(fleet.state) as site, Tab(browser) as tab:
        page = tab.log_in(site.at("tasks"), site.tokens[AccessRole.OPERATOR])
        create(tab, toml_of(fleet, "trial", rounds=50))
        page.get_by_role("main").get_by_role("link", name="Rounds").click()
        page.get_by_text("Round 1 collects").wait_for()  # nobody asks for the page again
        press(page, site, "trial", "Pause", "paused")
        page.goto(site.at("rounds?task=trial"))
        page.get_by_text("No round is open").wait_for()
        rounds = fleet.read(lambda tx: tx.rounds.all("trial"))
        page.goto(site.at("tasks"))
        create(tab, toml_of(fleet, "news", rounds=3))
        press(page, site, "trial", "Stop", "stopped")
        page.goto(site.at("rounds?task=news"))
        page.get_by_text("Round 2 collects").wait_for()
        page.goto(site.at("releases?task=news"))
        page.locator("tbody").get_by_text("healthy").nth(len(limits) - 1).wait_for()
        tab.check()
    assert fleet.read(lambda tx: tx.rounds.all("trial")) == rounds, "it was stopped while it paused"
    assert fleet.read(lambda tx: tx.assignments.tally("news")) == {AssignmentStatus.HEALTHY: len(limits)}, fleet.story()


def limits_mib() -> dict[str, int]:
    """Five devices: for all of the model, three quarters, half of it twice, and a quarter."""
    from tests.support.small_fleet import need_mib  # torch, which the other tests here do without

    own = {"gateway": need_mib(3), "pi-4-a": need_mib(2), "pi-4-b": need_mib(2), "pi-zero": need_mib(1)}
    return {"jetson": 400} | own


def toml_of(fleet: SmallFleet, name: str, rounds: int) -> str:
    return TOML.format(name=name, folder=fleet.folder, model=fleet.model, rounds=rounds, devices=5)


def create(tab: Tab, toml: str) -> None:
    """By the form; first with a mistake in it, of which the browser complains too."""
    page = tab.page
    tab.check()
    page.get_by_role("link", name="New task").click()
    form = page.get_by_label("The task in TOML")
    assert "model_dir = " in form.input_value(), "an example to begin with"
    form.fill(toml.replace("rounds =", "roundz ="))
    page.get_by_role("button", name="Create").click()
    assert page.get_by_role("alert").inner_text() == "task: Object contains unknown field `roundz`"
    tab.complaints.clear()
    form.fill(toml)
    page.get_by_role("button", name="Create").click()
    page.wait_for_url("**/tasks/*")


def press(page: Page, site: Site, task: str, button: str, becomes: str) -> None:
    """A button on the page of a task."""
    page.goto(site.at(f"tasks/{task}"))
    page.get_by_role("button", name=button).click()
    page.locator(".figures").get_by_text(becomes).wait_for()


@pytest.mark.long
@pytest.mark.minilm
@pytest.mark.timeout(1800)
def test_pictures_in_the_readme_are_of_a_demo(browser: Browser, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The demo's eight devices, five of whose rounds are over."""
    if not pytestconfig.getoption("--screenshots"):
        pytest.skip("makes the README's pictures: --screenshots")
    from tests.e2e.test_demo import end_demo, start_demo, wait_until_collecting  # torch too

    demo = start_demo(tmp_path, {}, "--rounds", "7", "--no-compare")
    state = tmp_path / "state" / "coordinator"
    try:
        wait_until_collecting(tmp_path, demo, 1)
        with site_of(state) as site, Tab(browser, color_scheme="dark") as tab:
            tab.page.set_default_timeout(1e6)
            page = tab.log_in(site.at("rounds"), site.tokens[AccessRole.OPERATOR])
            page.get_by_text("Round 6 collects").wait_for()
            page.get_by_text(re.compile(r"^[3-6] delivered")).wait_for()
            for name, path, size, scheme in PICTURES:
                picture(browser, site, name, path, size, scheme)
    finally:
        end_demo(tmp_path, demo)


def picture(browser: Browser, site: Site, name: str, path: str, size: tuple[int, int], scheme: str) -> None:
    """One page as it is now."""
    with Tab(browser, size, color_scheme=scheme) as tab:
        page = tab.log_in(site.at(path), site.tokens[AccessRole.OPERATOR])
        file = FOLDER / f"{name}.png"
        page.screenshot(path=file)
        assert file.stat().st_size <= MOST_PICTURE_BYTES
