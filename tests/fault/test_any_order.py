"""R6: messages that come twice, late, in any order or not at all have the effect of those that come once."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coordinator.rounds import conductor
from edge_sdk.protocol.messages import Verdict
from tests.support.checker import Judgement, judge
from tests.support.controls import CONTROLS
from tests.support.crash import note_aggregations
from tests.support.history import Kind, Operation
from tests.support.light_model import light_models, light_task
from tests.support.memory import memory_folder
from tests.support.new_store import new_store
from tests.support.proof import Proof
from tests.support.stepped import Clock, SteppedFleet, ticking

NAMES = ("a", "b")
DEADLINE_S = 100.0
any_index = st.integers(0, 1 << 16)
steps = Counter[str]()


class AnyOrder(RuleBasedStateMachine):
    """Two devices and a coordinator that runs round after round, whose model side is ``run``."""

    run: ModuleType

    @initialize()
    def begin(self) -> None:
        self.ending = ExitStack()
        folder = self.ending.enter_context(memory_folder())
        clock = Clock()
        self.ending.enter_context(ticking(clock))
        patch = self.ending.enter_context(pytest.MonkeyPatch().context())
        patch.setattr(conductor, "MAX_ABANDONED", 1 << 30)
        state = folder / "coordinator"
        state.mkdir()
        task = light_task(state, rounds=1000, min_devices=1, quorum=1, round_deadline_s=DEADLINE_S)
        store = new_store(state)
        with store.transaction() as tx:
            tx.tasks.add(task.name, msgspec.json.encode(task), 0.0)
        store.close()
        self.fleet = SteppedFleet(folder, NAMES, clock)
        self.ending.callback(self.fleet.close)
        patch.setattr(self.run.Run, "aggregate", self.run.Run.aggregate)
        note_aggregations(self.run, self.fleet.notes)

    @property
    def flying(self) -> int:
        return len(self.fleet.wire.flying)

    @rule(count=st.integers(1, 60))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, self.flying)):
            self.step("delivered")
            self.fleet.carry(0)

    @precondition(lambda self: self.flying > 1)
    @rule(index=any_index)
    def deliver_out_of_order(self, index: int) -> None:
        self.step("delivered out of order")
        self.fleet.carry(index % self.flying)

    @precondition(lambda self: self.flying > 0)
    @rule(index=any_index)
    def deliver_and_keep(self, index: int) -> None:
        self.step("delivered twice")
        self.fleet.carry(index % self.flying, copy=True)

    @precondition(lambda self: self.flying > 0)
    @rule(index=any_index)
    def drop(self, index: int) -> None:
        self.step("dropped")
        del self.fleet.wire.flying[index % self.flying]

    @rule(name=st.sampled_from(NAMES))
    def finish_training(self, name: str) -> None:
        self.step("trained")
        self.fleet.devices[name].finish()

    @rule(seconds=st.sampled_from([0.6, 0.6, 1.5, 1.5, 11.0, DEADLINE_S]))
    def let_time_pass(self, seconds: float) -> None:
        self.step("rounds expired" if seconds == DEADLINE_S else "ticks")
        self.fleet.let_time_pass(seconds)

    @rule(who=st.sampled_from([*NAMES, "coordinator"]))
    def restart(self, who: str) -> None:
        self.step(f"{who} restarted")
        self.fleet.restart(who)

    def step(self, what: str) -> None:
        steps[what] += 1

    @invariant()
    def what_has_a_receipt_is_in_the_store(self) -> None:
        accepted = {it.update for it in self.fleet.notes if it.what == "update" and it.kind is Kind.OK}
        with self.fleet.service.store.reading() as tx:
            for update in accepted:
                known = tx.updates.get(update)
                assert known is not None
                assert known.verdict is Verdict.ACCEPTED

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            return
        with self.ending:
            self.fleet.come_to_rest(DEADLINE_S)
            found = judge(self.whole_history())
            steps["updates"] += sum(it.what == "update" and it.kind is Kind.OK for it in self.fleet.notes)
            assert found == Judgement()

    def whole_history(self) -> Iterator[Operation]:
        yield from self.fleet.notes
        with self.fleet.service.store.reading() as tx:
            for version in tx.versions.all("task"):
                yield Operation("version", Kind.OK, "store", version.number, digest=version.digest)


def play(seed: int, *, examples: int, count: int, is_shrunk: bool = True) -> None:
    """So many runs of so many rules each, at most."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=count,
        phases=[Phase.generate, Phase.shrink] if is_shrunk else [Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with light_models() as run:
        machine = type("Seeded", (AnyOrder,), {"run": run})
        run_state_machine_as_test(seeded(seed)(machine), settings=chosen)


@pytest.mark.timeout(1800)
def test_messages_in_any_order_count_once(proof: Proof) -> None:
    steps.clear()
    violations = 0
    for seed in proof.seeds(short=1, full=20):
        more, until = random.Random(seed), steps.total() + proof.count(short=200, full=10_000)
        while steps.total() < until:
            violations += is_violated(more.getrandbits(32), examples=4, count=proof.count(short=40, full=100))
    print(dict(steps))
    assert steps["updates"] > 0
    proof.show("R6", f"violations of R1 in {steps.total()} deliveries and faults", violations, at_most=0)


def is_violated(seed: int, **extent: int) -> bool:
    """Whether the smallest run that Hypothesis finds breaks R1; what it was is printed."""
    try:
        play(seed, **extent)
    except AssertionError:
        print(f"--seed {seed}\n{traceback.format_exc()}")
        return True
    return False


def test_without_dedupe_an_update_counts_twice(proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is the ids of updates that make a second one harmless."""
    CONTROLS["no_dedupe"](monkeypatch)
    with pytest.raises(AssertionError):
        play(proof.seed, examples=200, count=60, is_shrunk=False)
