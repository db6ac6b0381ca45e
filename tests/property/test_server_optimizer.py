"""Server optimizers against a transcription of the papers' algorithms on dense float64 arrays, over several rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregation import coverage
from coordinator.aggregation.coverage import Aggregated, advance
from coordinator.aggregation.server_optimizer import OptimizerKind, ServerOptimizer
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from tests.property.test_aggregation import BASE, COHORTS, SEEDS, SHAPES, Cohort, bits, dense_mean, mask, sources
from tests.support.plain_mean import aggregate

KINDS = st.sampled_from(OptimizerKind)
ROUNDS = st.lists(COHORTS, min_size=1, max_size=4)
FLOOR = 0.3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_BLOCK", 30)


@st.composite
def optimizers(draw: st.DrawFn) -> ServerOptimizer:
    betas = st.floats(0, 0.99)
    rate, tau = draw(st.floats(0.01, 1)), draw(st.floats(1e-3, 0.1))
    return ServerOptimizer(draw(KINDS), rate, draw(betas), draw(betas), tau)


@dataclass
class Paper:
    """One parameter under arXiv 2003.00295, algorithm 2 (FedAvgM: arXiv 1909.06335, § 4.3), line by line."""

    x: np.ndarray
    m: np.ndarray
    v: np.ndarray

    def round(self, optimizer: ServerOptimizer, delta: np.ndarray) -> None:
        b1, b2, eta, tau = optimizer.beta1, optimizer.beta2, optimizer.rate, optimizer.tau
        if optimizer.kind is OptimizerKind.FEDAVG:
            self.x = self.x + eta * delta
            return
        if optimizer.kind is OptimizerKind.FEDAVGM:
            self.m = b1 * self.m + delta
            self.x = self.x + eta * self.m
            return
        self.m = b1 * self.m + (1 - b1) * delta
        if optimizer.kind is OptimizerKind.FEDADAM:
            self.v = b2 * self.v + (1 - b2) * delta**2
        else:
            self.v = self.v - (1 - b2) * delta**2 * np.sign(self.v - delta**2)
        self.x = self.x + eta * self.m / (np.sqrt(self.v) + tau)


def papers_after(rounds: list[Cohort], seed: int, optimizer: ServerOptimizer) -> dict[str, Paper]:
    """Every entry for itself: a round that does not cover it does not happen to it."""
    start = optimizer.tau**2
    papers = {n: Paper(x.astype(float), np.zeros(x.shape), np.full(x.shape, start)) for n, x in BASE.items()}
    for number, cohort in enumerate(rounds):
        with tempfile.TemporaryDirectory() as folder:
            updates = sources(folder, cohort, seed + 100 * number)
            means = dense_mean(updates, FLOOR)
        for name, paper in papers.items():
            before, covered = Paper(paper.x, paper.m, paper.v), np.zeros(SHAPES[name], bool)
            for update in updates:
                covered |= mask(update.slices.get(name), SHAPES[name])
            paper.round(optimizer, means[name])
            for kept in ("x", "m", "v"):
                setattr(paper, kept, np.where(covered, getattr(paper, kept), getattr(before, kept)))
    return papers


def played(rounds: list[Cohort], seed: int, optimizer: ServerOptimizer) -> Iterator[Aggregated]:
    state = Aggregated(BASE)
    for number, cohort in enumerate(rounds):
        with tempfile.TemporaryDirectory() as folder:
            updates = sources(folder, cohort, seed + 100 * number)
            state = advance(state.parameters, updates, floor=FLOOR, optimizer=optimizer, moments=state.moments)
        yield state


@settings(max_examples=25)
@given(ROUNDS, SEEDS, optimizers())
def test_rounds_equal_the_papers_algorithm(rounds: list[Cohort], seed: int, optimizer: ServerOptimizer) -> None:
    *_, last = played(rounds, seed, optimizer)
    for name, paper in papers_after(rounds, seed, optimizer).items():
        np.testing.assert_allclose(last.parameters[name], paper.x, rtol=1e-4, atol=1e-4, err_msg=name)
        if f"momentum.{name}" in last.moments:
            np.testing.assert_allclose(-last.moments[f"momentum.{name}"], paper.m, rtol=1e-4, atol=1e-4)
        if f"variance.{name}" in last.moments:
            np.testing.assert_allclose(last.moments[f"variance.{name}"], paper.v, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(COHORTS, COHORTS, SEEDS, optimizers())
def test_entries_that_nobody_covers_keep_value_and_moments(
    first: Cohort, second: Cohort, seed: int, optimizer: ServerOptimizer
) -> None:
    before, after = played([first, second], seed, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, second, seed)
    for name, shape in SHAPES.items():
        uncovered = ~np.any([mask(update.slices.get(name), shape) for update in updates], axis=0)
        assert (after.parameters[name][uncovered] == before.parameters[name][uncovered]).all()
        for moment in (f"{kind}.{name}" for kind in optimizer.kind.moments):
            start = np.full(shape, optimizer.tau**2 if moment.startswith("variance") else 0, np.float32)
            kept, known = after.moments.get(moment, start), before.moments.get(moment, start)
            assert (kept[uncovered] == known[uncovered]).all()


@settings(max_examples=20)
@given(COHORTS, SEEDS, optimizers())
def test_untrained_updates_at_the_start_return_the_base_bit_for_bit(
    cohort: Cohort, seed: int, optimizer: ServerOptimizer
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed, scale=0.0)
        result = advance(BASE, updates, floor=0.0, optimizer=optimizer, moments={})
    assert bits(result.parameters) == bits(BASE)


@settings(max_examples=20)
@given(COHORTS, SEEDS, optimizers())
def test_moments_that_were_stored_continue_to_the_same_bytes(
    cohort: Cohort, seed: int, optimizer: ServerOptimizer
) -> None:
    (first,) = played([cohort], seed, optimizer)
    stored = BytesIO()
    write_tensors(stored, first.moments)
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed + 1)
        goes_on, restarted = (
            advance(first.parameters, updates, floor=0.0, optimizer=optimizer, moments=moments)
            for moments in (first.moments, read_tensors(stored.getvalue()))
        )
    assert bits(goes_on.parameters) == bits(restarted.parameters)
    assert bits(goes_on.moments) == bits(restarted.moments)


@settings(max_examples=10)
@given(COHORTS, SEEDS)
def test_fedavg_at_rate_1_is_the_plain_mean_bit_for_bit(cohort: Cohort, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        updates = sources(folder, cohort, seed)
        result = advance(BASE, updates, floor=0.0, optimizer=ServerOptimizer(), moments={})
        assert bits(result.parameters) == bits(aggregate(BASE, updates, floor=0.0))
    assert result.moments == {}


def test_optimizer_is_read_from_json() -> None:
    text = b'{"kind": "fedyogi", "rate": 0.02, "beta1": 0.8}'
    assert msgspec.json.decode(text, type=ServerOptimizer) == ServerOptimizer(OptimizerKind.FEDYOGI, 0.02, 0.8)


@pytest.mark.parametrize(
    "field, value",
    [("rate", 0.0), ("rate", float("nan")), ("tau", -1.0), ("beta1", 1.0), ("beta2", -0.1), ("beta2", float("nan"))],
)
def test_optimizer_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=field):
        ServerOptimizer(**{field: value})
