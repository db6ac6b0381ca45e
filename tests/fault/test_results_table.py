"""The table of what was promised and seen says what tests have shown, and how many of a promise's cases failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from tests.support import proof
from tests.support.proof import Table

SOAK = SimpleNamespace(getoption={"--soak": True, "--seed": None}.get)
CASE = ("case", ("S1", "impersonations that get through"))


def report(test: str, outcome: Literal["passed", "failed", "skipped"], *shown: tuple[str, object], when: str = "call"):  # noqa: ANN201
    return pytest.TestReport(test, ("", 0, ""), {}, outcome, None, when, user_properties=list(shown), duration=2.0)  # type: ignore[arg-type]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(proof, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setenv("RAFFM_TEST_SEED", "7")
    return Table(SOAK)  # type: ignore[arg-type]


def rows_after(table: Table, *reports: pytest.TestReport) -> list[str]:
    for each in reports:
        table.pytest_runtest_logreport(each)
    table.pytest_sessionfinish()
    lines = proof.RESULTS.read_text().splitlines()
    return [" | ".join(line.strip("| ").split(" | ")[:6]) for line in lines if line.startswith(("| R", "| S"))]


def test_cases_are_counted_and_those_that_failed(table: Table) -> None:
    rows = rows_after(
        table,
        report("a", "passed", CASE, when="setup"),
        report("a", "passed", CASE),
        report("a", "passed", CASE, when="teardown"),
        report("b", "failed", CASE),
        report("c", "failed", CASE, when="setup"),
        report("d", "skipped", CASE, when="setup"),
    )
    assert rows == ["S1 | impersonations that get through, of 3 | 2 | 0 | **no** | 6"]


def test_figures_take_the_place_of_those_of_the_same_words_with_other_numbers(table: Table) -> None:
    first = ("proof", ("R6", "violations in 200735 faults", 0, 0))
    other = ("proof", ("R6", "violations in 199999 faults", 3, 0))
    another = ("proof", ("R6", "violations elsewhere", 0.5, 1))
    assert rows_after(table, report("a", "passed", first)) == ["R6 | violations in 200735 faults | 0 | 0 | yes | 2"]
    assert rows_after(table, report("a", "failed", other, another)) == [
        "R6 | violations elsewhere | 0.5 | 1 | yes | 2",
        "R6 | violations in 199999 faults | 3 | 0 | **no** | 2",
    ]
