"""R4: a device that dies in any state runs the old model or the new one, and hands in at most one update a round."""

from __future__ import annotations

import os
import queue
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import msgspec
import pytest

from edge_sdk.errors import StorageError
from edge_sdk.protocol.messages import Recipe
from edge_sdk.training.job import Progress, TrainingEvent, TrainingJob
from edge_sdk.training.process import TrainingProcess
from tests.support.agent_case import AgentCase, Found
from tests.support.broker import Broker, iotcore_broker
from tests.support.crash import Crash
from tests.support.logistic_graph import training_job
from tests.support.proof import Proof

pytestmark = pytest.mark.xdist_group("agent kills")  # they share a device that has worked

INTERVAL_S = 0.3
OLDEST = 60 / 45  # of an interval: a checkpoint is a minute old at most, and a job's own interval is 45 s


class Cases:
    """Devices on one broker; each begins with release 1."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self._folder, self._broker, self._numbers = folder, broker, count()
        with closing(AgentCase(folder / "first", broker)) as first:
            first.first_model()
        self._before = first.state_dir
        self.whole = self.run()
        assert self.whole.is_usable

    def run(self, crash: Crash | None = None, kill_after_s: float | None = None, control: str = "") -> Found:
        folder = self._folder / f"device-{next(self._numbers)}"
        with closing(AgentCase(folder, self._broker, self._before, control)) as case:
            return case.run(crash, kill_after_s)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with iotcore_broker() as broker:
        yield Cases(tmp_path_factory.mktemp("agents"), broker)


def show(proof: Proof, when: str, found: list[Found]) -> None:
    """The figures of R4."""
    proof.show("R4", f"devices without a model, {when}", sum(not it.had_model for it in found), at_most=0)
    proof.show("R4", f"second updates of a round, {when}", sum(max(0, it.updates - 1) for it in found), at_most=0)
    proof.show("R4", f"devices that cannot go on, {when}", sum(not it.is_usable for it in found), at_most=0)


def points_of(passed: tuple[str, ...]) -> Iterator[Crash]:
    """Every named point, at its first, middle and last passing: before, after, and refused by the disk."""
    for point in sorted({*passed}):
        times = passed.count(point)
        for nth in sorted({1, (times + 1) // 2, times}):
            yield from (Crash(point, nth), Crash(point, nth, is_after=True), Crash(point, nth, is_error=True))


@pytest.mark.timeout(600)
def test_device_that_dies_or_is_refused_in_any_state_goes_on(cases: Cases, proof: Proof) -> None:
    table = list(points_of(cases.whole.passed))
    chosen = table if proof.is_full else random.Random(proof.seed).sample(table, 2)
    found = []
    for crash in chosen:
        found.append(cases.run(crash))
        print(crash, "ended with", found[-1].exit_code)
        code = found[-1].exit_code
        assert not crash.is_error or code in {None, StorageError.exit_code}, "it ended without a named error"
    assert {"start training", "put into outbox", "switch slot"} <= {*cases.whole.passed}
    show(proof, f"{len(chosen)} deaths and errors in named states", found)


@pytest.mark.timeout(1200)
def test_device_killed_at_random_instants_goes_on(cases: Cases, proof: Proof) -> None:
    found = list[Found]()
    for seed in proof.seeds(short=1, full=100):
        instants, it = random.Random(seed), None
        while it is None or not it.is_killed:  # it may be done before
            it = cases.run(kill_after_s=instants.uniform(0, cases.whole.seconds))
        found.append(it)
    show(proof, f"{len(found)} kills at random instants", found)


def test_training_killed_loses_at_most_the_time_since_its_checkpoint(tmp_path: Path, proof: Proof) -> None:
    recipe = Recipe(learning_rate=0.05, batch_size=1, epochs=1000, max_tokens=16)
    job = training_job(
        tmp_path, recipe=recipe, checkpoint=str(tmp_path / "checkpoint"), checkpoint_interval_s=INTERVAL_S
    )
    worst_s = 0.0
    for seed in proof.seeds(short=1, full=20):
        kill_s = random.Random(seed).uniform(1.5 * INTERVAL_S, 4 * INTERVAL_S)
        done = steps_until_killed(msgspec.structs.replace(job, seed=seed), kill_s)
        first = next(iter(steps_until_killed(msgspec.structs.replace(job, seed=seed), 0)))
        lost = [at_s for step, at_s in done.items() if step >= first]
        worst_s = max(worst_s, max(lost) - min(lost) if lost else 0.0)
    proof.show(
        "R4", "seconds of training lost by a kill, of a checkpoint's interval", worst_s / INTERVAL_S, at_most=OLDEST
    )


def steps_until_killed(job: TrainingJob, kill_s: float) -> dict[int, float]:
    """When each step was done, of a training that is killed so long after its first one."""
    events: queue.Queue[TrainingEvent] = queue.Queue()
    process = TrainingProcess(job, events.put)
    done, first_s = dict[int, float](), None
    while first_s is None or time.monotonic() - first_s < kill_s:
        event = events.get(timeout=60)
        assert isinstance(event, Progress), event
        done[event.step] = time.monotonic()
        first_s = first_s or done[event.step]
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60)
    return done


def test_device_with_one_slot_is_left_without_a_model(cases: Cases) -> None:
    """The control: it is the second slot that keeps the old model while the new one is staged."""
    while_staged = cases.whole.passed.count("rename") - 4  # then come its measurement, its number, the switch, the end
    found = cases.run(Crash("rename", while_staged), control="one_slot")
    assert found.is_killed
    assert not found.had_model
