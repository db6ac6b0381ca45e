"""What tests in several folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.broker import Broker, iotcore_broker, mosquitto_broker
from tests.support.small_fleet import SmallFleet, save_small_model

# where CI decides what lands, the same code gets the same examples; by hand every run looks elsewhere
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a tokenizer, in a folder."""
    return save_small_model(tmp_path_factory.mktemp("small-model"))


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
    with SmallFleet(tmp_path, small_model, str(embedded_broker.address), template_cache) as running:
        yield running


@contextmanager
def _brokers(kind: str) -> Iterator[Broker]:
    with iotcore_broker() if kind == "iotcore" else mosquitto_broker() as running:
        yield running
