"""The dashboard in a real browser: quick with a thousand devices, on a phone too; a task from its form to its end, and
its release signed elsewhere, rolled out, halted.

The pictures in the README are made by the last two tests, where ``--screenshots`` asks for them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from coordinator.api.access import make_token
from coordinator.cli import app
from coordinator.delivery.approving import sign_manifest
from coordinator.delivery.roots import ensure_root
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.records import AssignmentRecord
from coordinator.store.states import AccessRole, AssignmentStatus, RolloutStatus, TaskStatus
from tests.e2e.test_api_process import ask, serving
from tests.support.browser import DESK, PHONE, Tab, chromium
from tests.support.filled_store import TASK, fill_state
from tests.support.waiting_release import ANN, BOB, open_with_release

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.support.small_fleet import SmallFleet

pytestmark = pytest.mark.xdist_group("dashboard")  # one browser and one thousand devices for all of them
PAGES = (
    *("devices/android-0003", "rounds", "releases/2", "rollouts/1"),
    *("fleet", "tasks", f"tasks/{TASK}", "new-task", "releases", "releases/1", "releases/1/new-rollout", "running"),
)
DARK = 4
"""So many of them are looked at in the dark too."""
FOLDER = Path(__file__).parents[2] / "coordinator" / "dashboard" / "screenshots"
RELEASE_PICTURES = (
    ("release", "releases/1", (1280, 1120), "light"),
    ("rollout", "rollouts/1", (1280, 1120), "dark"),
    ("rollout-phone", "rollouts/1", PHONE, "light"),
)
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
        page.get_by_text("No device matches.").wait_for()
        assert not page.get_by_text("New task").count()
        tab.check()


def test_every_page_fits_and_reads_on_a_phone_and_on_a_desk(browser: Browser, site: Site) -> None:
    for size, scheme, paths in ((PHONE, "light", PAGES), (DESK, "dark", PAGES[:DARK])):
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


def test_what_was_typed_outlives_the_session_and_the_server(browser: Browser, tmp_path: Path) -> None:
    fill_state(tmp_path, 5, 1).close()
    with Tab(browser) as tab:
        with site_of(tmp_path) as site:
            page = tab.log_in(site.at("new-task"), site.tokens[AccessRole.OPERATOR])
            page.get_by_label("The task in TOML").fill("name = 'typed for an hour'")
            page.context.clear_cookies()
            page.get_by_role("button", name="Create").click()
            with page.context.expect_page() as opened:
                page.get_by_role("link", name="Log in").click()
            opened.value.get_by_label("Token").fill(site.tokens[AccessRole.OPERATOR])
            opened.value.get_by_role("button", name="Log in").click()
            opened.value.wait_for_url(site.at("fleet"))
            page.get_by_role("button", name="Create").click()
            page.get_by_role("alert").get_by_text("task").wait_for()
            assert page.url == site.at("tasks")
            assert "typed for an hour" in page.get_by_label("The task in TOML").input_value()
        page.get_by_role("button", name="Create").click()
        page.get_by_text("The server does not answer").wait_for()
        assert "typed for an hour" in page.get_by_label("The task in TOML").input_value()


def test_page_of_a_button_that_came_too_late_goes_on(browser: Browser, tmp_path: Path) -> None:
    fill_state(tmp_path, 20, 2).close()
    with site_of(tmp_path) as site, Tab(browser) as tab:
        address = site.at(f"tasks/{TASK}")
        page = tab.log_in(address, site.tokens[AccessRole.OPERATOR])
        with closing(open_store(tmp_path)) as store, store.transaction() as tx:
            tx.tasks.set_status(TASK, TaskStatus.PAUSED)
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("alert").get_by_text("is paused and cannot be paused").wait_for()
        page.wait_for_url(address)  # once the page has run its script
        with closing(open_store(tmp_path)) as store, store.transaction() as tx:
            tx.tasks.set_status(TASK, TaskStatus.STOPPED)
        page.locator("#state").get_by_text("stopped").wait_for()
        page.reload()
        assert page.get_by_role("alert").count() == 0


def test_release_is_approved_rolled_out_and_halted_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    """What devices say is written into the store: nobody is there."""
    store = open_with_release(tmp_path)
    with site_of(tmp_path) as site, Tab(browser) as tab:
        page = tab.log_in(site.at("releases/1"), site.tokens[AccessRole.OPERATOR])
        for key, becomes in ((ANN, "lacks 1 signature"), (BOB, "approved")):
            approve(page, tmp_path, partial(signed_file, key), becomes)
        page.get_by_role("link", name="Roll out").click()
        page.get_by_label("Trial, seconds").fill("1e9")
        page.get_by_role("button", name="Roll out").click()
        assert "does not end within the health interval" in page.get_by_role("alert").inner_text()
        tab.complaints.clear()  # Chromium tells of the 400
        begin(page, "25%,100%", trial_s=2)
        first, *others = store_read(store, 1)
        with store.transaction() as tx:
            tx.assignments.stands(first.number, AssignmentStatus.HEALTHY, "", time.time())
            tx.assignments.stands(others[0].number, AssignmentStatus.ROLLED_BACK, EVIL, time.time())
        page.locator(".stages li").first.get_by_text("1 healthy").wait_for()  # nobody asks for the page again
        assert page.get_by_text(EVIL).is_visible()
        press_button(page, "Halt", "halted")
        assert page.locator(".buttons").get_by_role("button").all_inner_texts() == ["Roll back"]
        page.wait_for_load_state()  # what is chosen before the page's script runs is not heard
        page.get_by_label("State").select_option("Healthy")
        page.locator("tbody tr").nth(1).wait_for(state="detached")
        assert page.locator("tbody th").all_inner_texts() == [first.device]
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        assert (overflow(page), page.title()) == (0, "Rollout 1 · raffm-edge")
        tab.check()
    with store.reading() as tx:
        assert [entry.who for entry in tx.audit.newest(4)] == ["olga"] * 4
    store.close()


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
        page.get_by_text("Round 1 is collecting updates").wait_for()  # nobody asks for the page again
        press(page, site, "trial", "Pause", "paused")
        page.goto(site.at("rounds?task=trial"))
        page.get_by_text("No round is open").wait_for()
        rounds = fleet.read(lambda tx: tx.rounds.all("trial"))
        page.goto(site.at("tasks"))
        create(tab, toml_of(fleet, "news", rounds=3))
        press(page, site, "trial", "Stop", "stopped")
        page.goto(site.at("rounds?task=news"))
        page.get_by_text("Round 2 is collecting updates").wait_for()
        page.goto(site.at("running?task=news"))
        page.locator("tbody").get_by_text("healthy").nth(len(limits) - 1).wait_for()
        tab.check()
    assert fleet.read(lambda tx: tx.rounds.all("trial")) == rounds, "it was stopped while it paused"
    assert fleet.read(lambda tx: tx.assignments.tally("news")) == {AssignmentStatus.HEALTHY: len(limits)}, fleet.story()


def limits_mib() -> dict[str, int]:
    """Five devices: for all of the model, three quarters, half of it twice, and a quarter."""
    from tests.support.small_fleet import need_mib  # torch, which the other tests here do without

    own = {"gateway": need_mib(3), "pi-4-a": need_mib(2), "pi-4-b": need_mib(2), "pi-zero": need_mib(1)}
    return {"jetson": 400} | own


def inference_limits_mib() -> list[int]:
    """Of the same devices."""
    from tests.support.small_fleet import inference_mib

    return [inference_mib(heads) for heads in (4, 3, 2, 2, 1)]


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
@pytest.mark.timeout(600)
def test_release_of_real_agents_is_signed_offline_rolled_out_halted_and_rolled_out_again(
    browser: Browser, fleet: SmallFleet, pytestconfig: pytest.Config
) -> None:
    """The first stage keeps it, the second is on trial when all is halted, the third never hears of it.

    Out again, asked to be faster than it can, it goes back by itself; without that it stays.
    """
    limits = limits_mib()
    keys = keys_of_two_people(fleet)
    fleet.serve(stays=True)
    for (name, limit_mib), inference in zip(limits.items(), inference_limits_mib(), strict=True):
        fleet.agent(name, limit_mib, inference_memory_mib=inference)
    with site_of(fleet.state) as site, Tab(browser) as tab:
        tab.page.set_default_timeout(3e5)  # of a busy machine
        page = tab.log_in(site.at("tasks"), site.tokens[AccessRole.OPERATOR])
        create(tab, toml_of(fleet, "news", rounds=3))
        page.get_by_role("main").get_by_role("link", name="Rounds").click()
        page.get_by_text("Round 1 is collecting updates").wait_for()
        page.goto(site.at("tasks/news"))
        page.locator(".figures").get_by_text("done").wait_for()
        page.get_by_role("main").get_by_role("link", name="Releases").click()
        page.locator("tbody th").get_by_role("link", name="1", exact=True).click()
        approve(page, fleet.folder, partial(typed_signature, keys[0]), "lacks 1 signature")
        take_pictures(browser, site, RELEASE_PICTURES[:1], pytestconfig)
        approve(page, fleet.folder, partial(typed_signature, keys[1]), "approved")
        page.get_by_role("link", name="Roll out").click()
        begin(page, "20%, 60%, 100%", trial_s=15)
        stages = page.locator(".stages li")
        stages.nth(0).get_by_text("1 healthy").wait_for()
        stages.nth(1).get_by_text("2 on trial").wait_for()
        press_button(page, "Halt", "halted")
        stages.nth(1).get_by_text("2 rolled back").wait_for()
        assert page.get_by_text("the rollout was halted").count() == 2
        assert stages.nth(2).get_by_text("2 pending").is_visible()
        take_pictures(browser, site, RELEASE_PICTURES[1:], pytestconfig)
        press_button(page, "Roll back", "rolled back")
        assert {running_release(fleet, name) for name in limits} == {None}
        page.goto(site.at("releases/1/new-rollout"))
        begin(page, "20%, 100%", max_latency_ms=0.001)
        page.locator(".figures").get_by_text("halted").wait_for()  # by itself
        assert page.locator(".detail").get_by_text("an example takes").count() == 1
        assert page.get_by_text("pending").count() > 1
        page.goto(site.at("releases/1"))
        page.get_by_role("link", name="Roll out").click()
        begin(page, "100%")
        page.locator(".figures").get_by_text("done").wait_for()
        page.locator("tbody").get_by_text("healthy").nth(len(limits) - 1).wait_for()
        tab.check()
    assert {running_release(fleet, name) for name in limits} == {1}, fleet.story()
    assert fleet.read(lambda tx: [known.status for known in tx.rollouts.all()]) == [
        *(RolloutStatus.ROLLED_BACK, RolloutStatus.HALTED, RolloutStatus.DONE),
    ]


def keys_of_two_people(fleet: SmallFleet) -> list[Path]:
    """Both of whom have to sign a release from now on; the coordinator has no such key any more."""
    state, folder = fleet.state, fleet.folder
    store = open_store(state)
    ensure_root(store, state, time.time())
    store.close()
    files = {name: folder / f"{name}.key" for name in ("safe", "ann", "bob")}
    for file in files.values():
        typed("key", "new", file)
    public = [file.with_suffix(".pub") for file in files.values()]
    people = ("--root", public[0], "--release", public[1], "--release", public[2])
    keys = ("--key", state / "root.key", "--key", files["safe"])
    typed("root", "rotate", folder / "root-2.json", "--from", state / "root.json", *people, *keys)
    typed("root", "install", folder / "root-2.json", "--state-dir", state)
    for role in ("release", "root"):
        (state / f"{role}.key").unlink()
    return [files["ann"], files["bob"]]


def typed(*words: object) -> str:
    """A command of the coordinator's."""
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False).stdout


def typed_signature(key: Path, file: Path) -> Path:
    return Path(typed("release", "sign", file, "--key", key).split()[-1])


def signed_file(key: Ed25519PrivateKey, file: Path) -> Path:
    return sign_manifest(file, key)[1]


def approve(page: Page, folder: Path, sign: Callable[[Path], Path], becomes: str) -> None:
    """On a release's page: fetch what there is to sign, sign it elsewhere, and give back the file."""
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile(r"release-\d+\.json")).click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    page.get_by_label("Signature file").set_input_files(sign(file))
    expect_filled = 'document.getElementById("signed").value.length > 100'
    page.wait_for_function(expect_filled)
    page.get_by_role("button", name="Approve").click()
    page.locator(".figures").get_by_text(becomes).wait_for()


def begin(page: Page, stages: str, *, trial_s: float = 0.0, max_latency_ms: float | None = None) -> None:
    """By the form of a rollout."""
    page.get_by_label("Stages").fill(stages)
    page.get_by_label("Trial, seconds").fill(str(trial_s))
    if max_latency_ms is not None:
        page.get_by_label("Maximum latency, ms").fill(str(max_latency_ms))
    page.get_by_role("button", name="Roll out").click()
    page.wait_for_url("**/rollouts/*")


def press_button(page: Page, button: str, becomes: str) -> None:
    """A button on the page that is shown."""
    page.get_by_role("button", name=button).click()
    page.locator(".figures").get_by_text(becomes, exact=True).wait_for()


def store_read(store: Store, rollout: int) -> tuple[AssignmentRecord, ...]:
    """The devices of a rollout by stage."""
    with store.reading() as tx:
        return tx.assignments.standing(rollout, None, 99)


def running_release(fleet: SmallFleet, device: str) -> int | None:
    """What is in the slot of a device."""
    from edge_sdk.inference.slots import Slots

    return Slots(fleet.folder / device / "slots").current_release()


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
            page.get_by_text("Round 6 is collecting updates").wait_for()
            page.get_by_text(re.compile(r"^[3-6] delivered")).wait_for()
            take_pictures(browser, site, PICTURES, pytestconfig)
    finally:
        end_demo(tmp_path, demo)


def take_pictures(
    browser: Browser, site: Site, pictures: Sequence[tuple[str, str, tuple[int, int], str]], config: pytest.Config
) -> None:
    """Of pages as they are now, for the README, where they were asked for."""
    for name, path, size, scheme in pictures if config.getoption("--screenshots") else ():
        with Tab(browser, size, color_scheme=scheme) as tab:
            page = tab.log_in(site.at(path), site.tokens[AccessRole.OPERATOR])
            file = FOLDER / f"{name}.png"
            page.screenshot(path=file)
            assert file.stat().st_size <= MOST_PICTURE_BYTES
