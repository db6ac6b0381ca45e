"""A thousand days of a device that nobody can foresee: it never trains longer than five seconds against its policy.

A trace is a list of stretches; in each the battery, the charger, the heat, the use by others, the link and the clock
are what chance made them. The loop of a supervisor is simulated around the very :class:`Watch` that it uses: it comes
by at intervals of up to half a second and something, begins where it may, and needs up to two seconds to stop.
"""

from __future__ import annotations

import itertools
import os
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest

from edge_sdk.device.policy import Moment, Policy, Spent, may_begin, may_train, may_transfer
from edge_sdk.device.watch import LOOK_EVERY_S, STOP_WITHIN_S, Watch
from edge_sdk.elastic.runtimes import MIB
from edge_sdk.protocol.messages import Snapshot
from edge_sdk.training.process import STOP_S

TRACES = 1000
STRETCHES = 8
LOOP_S = (0.01, 0.9)  # the loop waits half a second for a message, and then may be busy
NOBODY_LOOKS_S = 1e9
BASE = Snapshot(
    memory_total_bytes=MIB, memory_available_bytes=MIB, training_memory_bytes=1, inference_memory_bytes=1, threads=1
)


@dataclass(frozen=True)
class Stretch:
    """The world does not change for a while; ``minute`` is of the day at its start."""

    from_s: float
    until_s: float
    snapshot: Snapshot
    minute: float
    watts: float | None


def a_policy(chance: random.Random) -> Policy:
    return Policy(
        charging_only=chance.random() < 0.3,
        battery_floor_share=chance.random(),
        idle_only=chance.random() < 0.3,
        quiet_hours=tuple(chance.sample(("22:00-07:00", "12:00-13:00", "06:30-06:31"), chance.randrange(3))),
        unmetered_only=chance.random() < 0.3,
        max_temperature_c=chance.uniform(50, 90),
        daily_energy_wh=chance.choice((None, 0.05, 0.5)),
        daily_mib=chance.choice((None, 20.0)),
    )


def a_trace(chance: random.Random) -> list[Stretch]:
    stretches, now_s = [], 0.0
    minute = chance.uniform(0, 1440)
    for _ in range(STRETCHES):
        until_s = now_s + chance.choice((0.3, 2.0, 7.0, 40.0)) * chance.random()
        if chance.random() < 0.2:  # the clock is set
            minute = chance.uniform(0, 1440)
        has_battery = chance.random() < 0.7
        snapshot = msgspec.structs.replace(
            BASE,
            battery_share=chance.random() if has_battery else None,
            charging=chance.choice((True, True, False, None)) if has_battery else None,
            temperature_c=chance.choice((None, 40.0, chance.uniform(30, 95))),
            others_cpu_share=chance.choice((0.0, 0.1, chance.random(), None)),
            metered=chance.choice((False, False, True, None)),
            disk_free_bytes=chance.choice((None, 10**10, 10**10, 10**6)),
        )
        stretches.append(Stretch(now_s, until_s, snapshot, minute, chance.choice((None, 5.0, 500.0))))
        minute = (minute + (until_s - now_s) / 60) % 1440
        now_s = until_s
    return stretches


@dataclass
class Run:
    """When one simulated device trained and fetched a chunk, and when the policy allowed either."""

    trained_s: list[tuple[float, float]] = field(default_factory=list)
    chunks_s: list[float] = field(default_factory=list)
    may_train_s: list[float] = field(default_factory=lambda: [0.0])
    may_move_s: list[float] = field(default_factory=lambda: [0.0])


class Device:
    """A simulated supervisor: it fetches and trains where it may, and does what the watch orders."""

    def __init__(self, policy: Policy, chance: random.Random, every_s: float) -> None:
        self.policy, self.chance, self.run = policy, chance, Run()
        self.watch = Watch(policy, every_s=every_s)
        self.spent = Spent()
        self.training_since_s: float | None = None
        self.fetching = self.held = False

    def come_by(self, now_s: float, step_s: float, stretch: Stretch) -> None:
        minute = int(stretch.minute + (now_s - stretch.from_s) / 60) % 1440
        moment = Moment(stretch.snapshot, minute, self.spent, stretch.watts)
        if may_train(self.policy, moment) is None:
            self.run.may_train_s.append(now_s)
        if may_transfer(self.policy, moment) is None:
            self.run.may_move_s.append(now_s)
        if self.watch.is_due(now_s):
            self.obey(now_s, moment)
        self.work(now_s, step_s, moment)

    def obey(self, now_s: float, moment: Moment) -> None:
        is_training = self.training_since_s is not None
        orders = self.watch.look(now_s, moment, fetching=self.fetching, training=is_training)
        self.held = orders.hold_blobs is not None
        if orders.end_work is not None:
            self.fetching = False
            self.stop(now_s + self.chance.uniform(0, STOP_S))

    def stop(self, ended_s: float) -> None:
        if self.training_since_s is not None:
            self.run.trained_s.append((self.training_since_s, ended_s))
        self.training_since_s = None

    def work(self, now_s: float, step_s: float, moment: Moment) -> None:
        if self.training_since_s is not None:
            energy_wh = (moment.watts or 0.0) * step_s / 3600
            self.spent = Spent(self.spent.energy_wh + energy_wh, self.spent.transferred_bytes)
        elif self.fetching:
            self.fetching = self.chance.random() < 0.7
            self.training_since_s = None if self.fetching else now_s
            if not self.held:
                self.run.chunks_s.append(now_s)
                self.spent = Spent(self.spent.energy_wh, self.spent.transferred_bytes + MIB)
        elif may_begin(self.policy, moment) is None:  # it says Ready, and an offer comes
            self.fetching = True


def simulate(policy: Policy, trace: list[Stretch], chance: random.Random, every_s: float) -> Run:
    device, now_s = Device(policy, chance, every_s), 0.0
    for stretch in trace:
        while now_s < stretch.until_s:
            step_s = chance.uniform(*LOOP_S)
            device.come_by(now_s, step_s, stretch)
            now_s += step_s
    device.stop(now_s)
    return device.run


def worst_s(run: Run) -> float:
    """The longest time for which something ran on after the last moment at which it was allowed."""
    worst = 0.0
    for since_s, until_s in run.trained_s:
        first, last = bisect_right(run.may_train_s, since_s), bisect_right(run.may_train_s, until_s)
        allowed_s = [*run.may_train_s[first - 1 : last], until_s]
        worst = max(worst, *(later - earlier for earlier, later in itertools.pairwise(allowed_s)))
    for chunk_s in run.chunks_s:
        worst = max(worst, chunk_s - run.may_move_s[bisect_right(run.may_move_s, chunk_s) - 1])
    return worst


def runs(every_s: float) -> Iterator[tuple[int, Run]]:
    """Each trace's seed, and what a device did in it that looks this often."""
    first = int(os.environ.get("TRACE_SEED", "0"))
    for seed in range(first, first + TRACES):
        chance = random.Random(seed)
        yield seed, simulate(a_policy(chance), a_trace(chance), chance, every_s)


def test_no_second_of_training_lies_outside_policy_and_five_seconds() -> None:
    trained_s = 0.0
    for seed, run in runs(LOOK_EVERY_S):
        trained_s += sum(until_s - since_s for since_s, until_s in run.trained_s)
        assert worst_s(run) <= STOP_WITHIN_S, f"against the policy: replay with TRACE_SEED={seed}"
    assert trained_s > 5_000, "the traces hardly train: they prove nothing"


@pytest.mark.parametrize("every_s", [10.0, NOBODY_LOOKS_S])
def test_looking_too_seldom_or_never_breaks_the_promise(every_s: float) -> None:
    """The control: it is the looking that keeps the promise."""
    assert any(worst_s(run) > STOP_WITHIN_S for _, run in runs(every_s))
