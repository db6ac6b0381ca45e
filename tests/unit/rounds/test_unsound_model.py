"""Rounds whose updates were let in one by one, and make a model that answers with what is no number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from coordinator import service
from coordinator.rounds.machine import MAX_ABANDONED
from coordinator.store.states import Phase, TaskStatus
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.light_model import light_models, light_task
from tests.support.served import Served, quick
from tests.support.simulator import Fleet


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_TICK_S", 0.02)


@pytest.fixture
def run() -> Iterator[ModuleType]:
    with light_models() as module:
        yield module


def spoil(run: ModuleType, monkeypatch: pytest.MonkeyPatch, is_spoilt: Callable[[int], bool]) -> None:
    """The loss of these versions is NaN; version 0 has the number 0."""
    evaluate = run.Run.evaluate

    def spoilt(self: Any, version: Any) -> list[Any]:
        results = evaluate(self, version)
        loss = math.nan if is_spoilt(version.number) else 1.0
        return [replace(one, evaluation=replace(one.evaluation, loss=loss)) for one in results]

    monkeypatch.setattr(run.Run, "evaluate", spoilt)


def serve(folder: Path) -> tuple[Served, Fleet]:
    hub = MemoryHub()
    task = light_task(folder, "news", rounds=2, min_devices=1, quorum=1)
    served = Served(quick(folder, exit_when_done=False), task, MemoryTransport(hub, coordinator_filters("default")))
    return served, Fleet(("pi",), lambda _, filters, will: MemoryTransport(hub, filters, will=will))


def test_round_that_spoils_the_model_is_abandoned_and_the_next_goes_on_from_before(
    tmp_path: Path, run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(run, monkeypatch, lambda number: number == 1)
    served, fleet = serve(tmp_path)
    with served, fleet:
        served.wait_until(lambda: served.status is TaskStatus.DONE)
        phases = [known.phase for known in served.read(lambda tx: tx.rounds.all("news"))]
        assert phases == [Phase.ABANDONED, Phase.CLOSED, Phase.CLOSED]
        bases = [known.base_version for known in served.read(lambda tx: tx.rounds.all("news"))]
        assert bases[0] == bases[1] != bases[2]
        assert [known.number for known in served.read(lambda tx: tx.versions.all("news"))] == [0, 2, 3]


def test_task_whose_rounds_all_spoil_the_model_fails_and_says_so(
    tmp_path: Path, run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(run, monkeypatch, lambda number: number > 0)
    served, fleet = serve(tmp_path)
    with served, fleet:
        served.wait_until(lambda: served.status is TaskStatus.FAILED)
        failure = served.read(lambda tx: tx.tasks.get("news")).failure
        assert failure == (
            f"its last {MAX_ABANDONED} rounds made models whose loss is not a number: lower the learning rate, "
            "or admit only smaller updates"
        )


def test_task_whose_own_model_answers_with_no_numbers_fails(
    tmp_path: Path, run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(run, monkeypatch, lambda _: True)
    served, fleet = serve(tmp_path)
    with served, fleet:
        served.wait_until(lambda: served.status is TaskStatus.FAILED)
        assert "its loss is not a number" in str(served.read(lambda tx: tx.tasks.get("news")).failure)
