"""What tests in several folders share."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, by whatever computes; several processes share the machine

import pytest
from hypothesis import settings

from tests.support.base_tests import BEYOND, is_base
from tests.support.broker import Broker, iotcore_broker, mosquitto_broker
from tests.support.memory import memory_folder
from tests.support.proof import Table, proof

if TYPE_CHECKING:
    from tests.support.small_fleet import SmallFleet

__all__ = ["proof"]  # a fixture

# where CI decides what lands, the same code gets the same examples; by hand every run looks elsewhere
settings.register_profile("here", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--base", action="store_true", help="the SDK's own tests, where only it and its base are installed"
    )
    parser.addoption("--soak", action="store_true", help="faults in full numbers; writes tests/fault/RESULTS.md")
    parser.addoption("--screenshots", action="store_true", help="the dashboard's long test makes the README's pictures")
    parser.addoption("--seed", type=int, help="replay the faults of an earlier run")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Table(config))
    if config.getoption("--base"):
        there = sorted(name for name in BEYOND if find_spec(name) is not None)
        if there:
            raise pytest.UsageError(f"--base is for an installation without {', '.join(there)}: use make test-all")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--base``, leave out what imports more than the base installation."""
    return True if config.getoption("--base") and not is_base(collection_path) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: the garbage collector need not walk it, which took a thirtieth of all time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--base"):
        beyond = [item for item in items if item.get_closest_marker("beyond_base")]
        config.hook.pytest_deselected(items=beyond)
        items[:] = [item for item in items if item not in beyond]
    items.sort(key=lambda item: _ORDER.index(_folder(item)) if _folder(item) in _ORDER else len(_ORDER))
    if config.getoption("--soak"):  # else a worker would have nothing left to do beside the last long one
        items.sort(key=_most_s, reverse=True)
    for item in items:
        if _folder(item) not in _ONE_BY_ONE and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(_TESTS))))


_TESTS = Path(__file__).parent
_ONE_BY_ONE = ("e2e", "fault")
_ORDER = (*_ONE_BY_ONE, "unit")
"""What takes longest begins first, and one by one; of the others a file is one worker's, with what its tests share."""


def _most_s(item: pytest.Item) -> float:
    """What the test may take, where it says so."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark else 0.0


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(_TESTS).parts[0]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a tokenizer, in a folder."""
    from tests.support.small_fleet import save_small_model

    return save_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder as ``tmp_path`` is one, in memory: nothing there is about what a disk keeps."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture(params=["iotcore", "mosquitto"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Every real broker in turn."""
    with _brokers(request.param) as running:
        yield running


@pytest.fixture
def embedded_broker() -> Iterator[Broker]:
    """The embedded broker alone, where the broker makes no difference."""
    with iotcore_broker() as running:
        yield running


@pytest.fixture
def template_cache(pytestconfig: pytest.Config) -> dict[str, str]:
    """An environment in which compiled templates are kept from one test run to the next."""
    return {"XDG_CACHE_HOME": str(pytestconfig.cache.mkdir("templates"))}


@pytest.fixture
def fleet(
    embedded_broker: Broker, tmp_path: Path, small_model: Path, template_cache: dict[str, str]
) -> Iterator[SmallFleet]:
    """Processes around the embedded broker."""
    from tests.support.small_fleet import SmallFleet

    with SmallFleet(tmp_path, small_model, str(embedded_broker.address), template_cache) as running:
        yield running


@contextmanager
def _brokers(kind: str) -> Iterator[Broker]:
    with iotcore_broker() if kind == "iotcore" else mosquitto_broker() as running:
        yield running
