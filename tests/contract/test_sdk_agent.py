"""The agent in an application, connected to a real broker: from plain threads and from asyncio."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_sdk import Agent
from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.errors import ConfigurationError, DataFormatError, StateInUseError, UnfitDeviceError
from edge_sdk.protocol.messages import ReleaseReport
from tests.support.broker import Broker, free_port, iotcore_broker
from tests.support.exchange_node import wait
from tests.support.signed import Signers, write_root_file

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
    assert not agent.status.connected
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


def test_agent_that_cannot_be_entered_lets_go_of_its_state_folder(tmp_path: Path) -> None:
    """Who reads in a notebook what is wrong, and mends it, does not have to start the notebook anew."""

    async def on_model(report: ReleaseReport) -> None:
        raise AssertionError(report)

    async def use() -> None:
        async with agent_at("mqtt://127.0.0.1:9", tmp_path, on_model=on_model):
            pass

    agent = agent_at("mqtt://127.0.0.1:9", tmp_path, on_model=on_model)
    with pytest.raises(ConfigurationError, match="async with"), agent:
        pass
    asyncio.run(use())


def test_agent_that_runs_goes_on_where_it_is_entered_as_well(tmp_path: Path) -> None:
    agent = agent_at("mqtt://127.0.0.1:9", tmp_path)
    agent.start()
    with pytest.raises(ConfigurationError, match="was started or stopped before"), agent:
        pass
    assert agent._thread.is_alive()
    agent.stop()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"device": 5}, "device = 5 is wrong: Expected `str`, got `int`"),
        ({"root": 5}, "root = 5 is wrong: Expected `str`, got `int`"),
        ({"root": "~nobody-of-this-name/root.json"}, "root = '~nobody-of-this-name/root.json' is wrong"),
        ({"threads": "2"}, "threads = '2' is wrong"),
        ({"runtime": "tf"}, "runtime = 'tf' is wrong: Invalid enum value 'tf'"),
        ({"policy": {"charging_only": True}}, "policy is a dict; give an edge_sdk.Policy"),
    ],
)
def test_setting_of_another_type_is_named(tmp_path: Path, setting: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Agent(**{"device": "pi-5", "broker": "mqtt://127.0.0.1", "state_dir": tmp_path} | setting)


def test_paths_may_be_text(tmp_path: Path) -> None:
    root = write_root_file(tmp_path / "root.json", Signers().root_envelope())
    agent = Agent("pi-5", "mqtt://127.0.0.1", state_dir=str(tmp_path / "state"), root=str(root))
    agent.stop()
    assert (agent.config.state_dir, agent.config.root) == (tmp_path / "state", root)


def test_agent_is_alone_in_its_state_folder(tmp_path: Path) -> None:
    agent = agent_at("mqtt://127.0.0.1:9", tmp_path)
    with pytest.raises(StateInUseError, match=f"{tmp_path} is in use by another agent: stop it first"):
        agent_at("mqtt://127.0.0.1:9", tmp_path)
    agent.stop()
    agent_at("mqtt://127.0.0.1:9", tmp_path).stop()


def test_state_folder_stays_where_it_is_when_the_application_goes_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    agent = agent_at("mqtt://127.0.0.1:9", Path("state"))
    monkeypatch.chdir("/")
    agent.learn("more pills", "spam")
    agent.stop()
    assert "more pills" in (tmp_path / "state" / "learnt.jsonl").read_text()


def test_forked_process_that_ends_does_not_let_another_agent_into_the_state_folder(tmp_path: Path) -> None:
    program = """
import os, sys
from edge_sdk import Agent
from edge_sdk.errors import StateInUseError
agent = Agent("pi-5", "mqtt://127.0.0.1:9", state_dir=sys.argv[1])
if os.fork() == 0:
    sys.exit()
os.wait()
try:
    Agent("pi-5", "mqtt://127.0.0.1:9", state_dir=sys.argv[1])
except StateInUseError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


@pytest.mark.beyond_base
def test_agent_goes_on_while_an_application_does_whose_main_thread_has_ended(
    embedded_broker: Broker, tmp_path: Path
) -> None:
    program = """
import sys, threading, time
from edge_sdk import Agent
agent = Agent("pi-5", sys.argv[1], [("a", "x"), ("b", "y")], state_dir=sys.argv[2], ready_interval_s=0.1)
agent.start()
def serve():
    threading.main_thread().join()
    time.sleep(0.5)
    agent._supervisor._machine._link_cost._asked_s = 0.0  # as if ten seconds had passed
    time.sleep(1)
    print(agent.status.connected)
threading.Thread(target=serve).start()
while not agent.status.connected:
    time.sleep(0.02)
"""
    command = [sys.executable, "-c", program, str(embedded_broker.address), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_agent_starts_once_and_stops_as_often_as_one_likes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    never_started, started = (agent_at(f"mqtt://127.0.0.1:{free_port()}", tmp_path / name) for name in "ab")
    started.start()
    for agent in (never_started, started):
        agent.stop()
        agent.stop()
        with pytest.raises(ConfigurationError, match="agent pi-5 was started or stopped before: make another Agent"):
            agent.start()
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_speed_is_measured_before_there_is_another_thread(tmp_path: Path) -> None:
    """The application may fork at any time, which hangs while a thread multiplies matrices."""
    agent = agent_at(f"mqtt://127.0.0.1:{free_port()}", tmp_path)
    agent.start()
    assert agent._supervisor._machine._speed is not None
    agent.stop()


@pytest.mark.beyond_base
def test_agent_stopped_by_its_own_callback_ends_after_it(embedded_broker: Broker, tmp_path: Path) -> None:
    agent = agent_at(str(embedded_broker.address), tmp_path)
    agent._supervisor._on_tick = lambda _: agent.stop()
    agent.start()
    agent._thread.join(30)
    assert not agent._thread.is_alive()
    assert not agent.status.connected


@pytest.mark.beyond_base
def test_whatever_ends_an_agent_is_raised_by_its_status(
    embedded_broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = list[type[BaseException]]()
    monkeypatch.setattr(threading, "excepthook", lambda given: shown.append(given.exc_type))
    agent = agent_at(str(embedded_broker.address), tmp_path)
    agent._supervisor._on_tick = lambda _: {}["what nobody foresaw"]
    agent.start()
    agent._thread.join(30)
    with pytest.raises(KeyError, match="foresaw"):
        _ = agent.status
    assert shown == [KeyError]


class Callback:
    """Of which nobody sees at first that it makes coroutines."""

    async def __call__(self, report: ReleaseReport) -> None:
        raise ValueError(report)


@pytest.mark.parametrize(
    ("callback", "what"),
    [(lambda _: {}["nothing"], "KeyError: 'nothing'"), (Callback(), "there is no loop to run it: use `async with`")],
)
def test_callback_that_fails_is_logged_and_the_agent_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, callback: Any, what: str
) -> None:
    agent = agent_at("mqtt://127.0.0.1", tmp_path, on_model=callback)
    agent._tell(REPORT)
    agent.stop()
    assert "on_model raised an exception; the agent continues" in caplog.text
    assert what in caplog.text


def test_coroutine_of_a_callback_that_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> Agent:
        agent = agent_at(f"mqtt://127.0.0.1:{free_port()}", tmp_path, on_model=Callback())
        async with agent:
            await asyncio.to_thread(agent._tell, REPORT)
            await asyncio.sleep(0)
        return agent

    agent = asyncio.run(use())
    assert "on_model raised an exception; the agent continues" in caplog.text
    assert "ValueError" in caplog.text
    agent._tell(REPORT)
    assert "there is no loop to run it" in caplog.text


def test_agent_that_is_named_no_broker_needs_to_be_enrolled(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="pi has no broker: give one, or enrol the device"):
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


@pytest.mark.beyond_base
def test_agent_waits_for_its_broker_and_says_so_in_its_status(tmp_path: Path) -> None:
    with iotcore_broker() as broker:
        broker.kill()
        agent = agent_at(str(broker.address), tmp_path)
        agent.start()
        wait(lambda: "no broker answers" in agent.status.waiting_for)
        assert not agent.status.connected
        broker.restart()
        wait(lambda: agent.status.connected)
        assert not agent.status.waiting_for
        agent.stop()


def test_agent_that_waits_for_its_broker_can_be_stopped(tmp_path: Path) -> None:
    agent = agent_at(f"mqtt://127.0.0.1:{free_port()}", tmp_path)
    agent.start()
    wait(lambda: bool(agent.status.waiting_for))
    began_s = time.monotonic()
    agent.stop()
    assert time.monotonic() < began_s + 3


def test_error_that_ended_an_agent_does_not_grow_with_each_look_at_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(supervisor: Supervisor, **_: object) -> None:
        supervisor.close()
        raise UnfitDeviceError("memory cannot be read")

    monkeypatch.setattr(Supervisor, "run", run)
    agent = agent_at("mqtt://127.0.0.1:9", tmp_path)
    agent.start()
    wait(lambda: not agent._thread.is_alive())
    depths = set[int]()
    for _ in range(3):
        with pytest.raises(UnfitDeviceError) as raised:
            _ = agent.status
        depths.add(len(raised.traceback))
    assert len(depths) == 1, "an application may ask for ever"
    agent.stop()
