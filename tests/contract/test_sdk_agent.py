"""The agent in an application, connected to a real broker: from plain threads and from asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import psutil
import pytest

from edge_sdk import Agent
from edge_sdk.errors import BrokerUnreachableError, ConfigurationError, DataFormatError
from edge_sdk.protocol.messages import ReleaseReport
from tests.support.broker import Broker, free_port

MAIL = [("cheap pills", "spam"), ("see you at noon", "ham")]
REPORT = ReleaseReport(release=1, task="mail", healthy=True)


def agent_at(broker: str, folder: Path, **more: object) -> Agent:
    return Agent("pi-5", broker, MAIL, state_dir=folder, **more)


@pytest.mark.beyond_base
def test_agent_connects_on_a_thread_and_stops(embedded_broker: Broker, tmp_path: Path) -> None:
    with agent_at(str(embedded_broker.address), tmp_path) as agent:
        deadline_s = time.monotonic() + 30
        while not agent.status.connected:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
    assert "agent-pi-5" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.beyond_base
def test_agent_in_asyncio_leaves_the_loop_free_and_calls_coroutines_on_it(
    embedded_broker: Broker, tmp_path: Path
) -> None:
    async def use() -> ReleaseReport:
        told: asyncio.Queue[ReleaseReport] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def on_model(report: ReleaseReport) -> None:
            assert asyncio.get_running_loop() is loop
            told.put_nowait(report)

        async with agent_at(str(embedded_broker.address), tmp_path, on_model=on_model) as agent:
            while not agent.status.connected:  # noqa: ASYNC110 - what a status is for
                await asyncio.sleep(0.02)
            await asyncio.to_thread(agent._tell, REPORT)
            return await told.get()

    assert asyncio.run(asyncio.wait_for(use(), 60)) == REPORT


def test_coroutine_function_without_a_loop_is_refused(tmp_path: Path) -> None:
    async def on_model(report: ReleaseReport) -> None:
        raise AssertionError(report)

    agent = agent_at("mqtt://127.0.0.1", tmp_path, on_model=on_model)
    with pytest.raises(ConfigurationError, match="async with"):
        agent.start()
    agent.stop()


def test_agent_that_is_named_no_broker_needs_to_be_enrolled(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pi has no broker: name one, or enrol it"):
        Agent("pi", state_dir=tmp_path)
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "agent.toml").write_text('device = "pi"\nbroker = "mqtts://fleet.example"\n')
    for given, broker in (((), "mqtts://fleet.example"), (("mqtt://127.0.0.1",), "mqtt://127.0.0.1")):
        agent = Agent("pi", *given, state_dir=tmp_path)
        agent.stop()
        assert agent.config.broker == broker


def test_agent_that_was_never_started_or_made_leaves_no_file_open(tmp_path: Path) -> None:
    def open_files() -> set[str]:
        return {file.path for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path))}

    agent = agent_at("mqtt://127.0.0.1:9", tmp_path)
    assert open_files()
    agent.stop()
    assert not open_files()
    with pytest.raises(DataFormatError) as refused:  # its traceback keeps what was made alive
        Agent("pi", "mqtt://127.0.0.1:9", tmp_path / "nothing.csv", state_dir=tmp_path / "other")
    assert refused
    assert not open_files()


def test_agent_without_a_broker_says_so_in_its_status(tmp_path: Path) -> None:
    agent = agent_at(f"mqtt://127.0.0.1:{free_port()}", tmp_path)
    agent.start()
    deadline_s = time.monotonic() + 30
    with pytest.raises(BrokerUnreachableError):  # noqa: PT012 - the status is asked until it says so
        while time.monotonic() < deadline_s:
            assert not agent.status.connected
            time.sleep(0.02)
    agent.stop()
