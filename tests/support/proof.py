"""What is promised under faults, and how it is shown: a short form in every run, the full one in ``make soak``.

A test asks for the fixture ``proof``, takes its numbers and its seed from it, and says at the end what it saw::

    def test_coordinator_killed_anywhere(proof: Proof) -> None:
        lost = sum(lost_in(seed) for seed in proof.seeds(short=5, full=100))
        proof.show("R1", "updates lost in kills of the coordinator", lost, at_most=0)

Where every test of many is a case of one promise, each is marked, and the table counts those that failed::

    @pytest.mark.case("S1", "impersonations that got through")

``--seed N`` replays a run; ``--soak`` takes the full numbers and writes what was shown into ``tests/fault/RESULTS.md``,
in place of what stood there for the same promise and the same words, whatever numbers are among them.
"""

from __future__ import annotations

import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.support.origin import commit, machine

RESULTS = Path(__file__).parents[1] / "fault" / "RESULTS.md"
_SEED = "RAFFM_TEST_SEED"
_PROPERTY, _CASE = "proof", "case"
_HEAD = """# What was promised, and what was seen

Written by `make soak`, each row by the run of its date, commit and seed; `pytest --soak --seed N` replays it.
On {machine}.

| promise | what | seen | at most | kept | seconds of its test | date | commit | seed |
|---|---|---:|---:|---|---:|---|---|---:|"""


@dataclass(frozen=True, slots=True)
class Proof:
    """The extent of one test's faults, and where its figures go."""

    is_full: bool
    seed: int
    shown: list[tuple[str, object]]

    @property
    def aside(self) -> Proof:
        """For a control that runs the test itself: what it shows is not for the table."""
        return replace(self, shown=[])

    def count(self, short: int, full: int) -> int:
        """How many, in this form of the run."""
        return full if self.is_full else short

    def seeds(self, short: int, full: int) -> range:
        """One for each fault, from the run's own seed on."""
        return range(self.seed, self.seed + self.count(short, full))

    def show(self, promise: str, what: str, figure: float, *, at_most: float) -> None:
        """Keep a figure for the table; fails where it is above what is promised."""
        self.shown.append((_PROPERTY, (promise, what, round(figure, 3), at_most)))
        assert figure <= at_most, f"{promise}: {what}: {figure}, promised at most {at_most}; --seed {self.seed} replays"


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Proof:
    """How much to do, from which seed, and where to say what was seen."""
    seed = int(os.environ[_SEED])
    print(f"seed {seed}")
    return Proof(request.config.getoption("--soak"), seed, request.node.user_properties)


class Table:
    """The plugin that chooses the run's seed and brings the table of full numbers up to date."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: list[Sequence[Any]] = []
        self._cases: defaultdict[tuple[str, str], list[pytest.TestReport]] = defaultdict(list)
        chosen = config.getoption("--seed")
        if chosen is not None:
            os.environ[_SEED] = str(chosen)
        else:  # workers inherit it; where CI decides what lands, it is always the same
            os.environ.setdefault(_SEED, "0" if os.environ.get("CI") else str(random.randrange(1 << 16)))

    def pytest_report_header(self) -> str:
        """Shown at the top of every run."""
        return f"faults from seed {os.environ[_SEED]} (--seed replays them)"

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Have the reports of cases say of which promise they are."""
        for item in items:
            item.user_properties += ((_CASE, mark.args) for mark in item.iter_markers(_CASE))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather what tests have shown; workers send it along."""
        if report.skipped or not (report.when == "call" or report.failed):
            return
        for key, value in report.user_properties:
            if key == _PROPERTY and report.when == "call" and isinstance(value, Sequence):
                self._rows.append((*value, report.duration))
            elif key == _CASE and isinstance(value, Sequence):
                self._cases[value[0], value[1]].append(report)

    def pytest_sessionfinish(self) -> None:
        """Write the table, once, where the whole is known."""
        self._rows += (_count(promise, what, reports) for (promise, what), reports in self._cases.items())
        if self._config.getoption("--soak") and self._rows and "PYTEST_XDIST_WORKER" not in os.environ:
            RESULTS.write_text(self._table(), encoding="utf-8")

    def _table(self) -> str:
        run = f"{datetime.now(timezone.utc):%Y-%m-%d} | {commit()} | {os.environ[_SEED]}"
        lines = dict(_lines_of(RESULTS)) | {
            (promise, _words(what)): " ".join(("|", _row(promise, what, *rest), "|", run, "|"))
            for promise, what, *rest in self._rows
        }
        return "\n".join((_HEAD.format(machine=machine()), *(lines[key] for key in sorted(lines, key=_order)), ""))


def _count(promise: str, what: str, reports: Sequence[pytest.TestReport]) -> Sequence[Any]:
    """The row of all cases together."""
    tests = {report.nodeid for report in reports}
    failed = {report.nodeid for report in reports if report.failed}
    seconds = sum(report.duration for report in reports)
    return promise, f"{what}, of {len(tests)}", len(failed), 0, seconds


def _lines_of(table: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """The rows that ``table`` has, by promise and words."""
    if table.exists():
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.startswith(("| R", "| S")):
                promise, what, *_ = line.removeprefix("| ").split(" | ")
                yield (promise, _words(what)), line


def _words(what: str) -> str:
    """Less its numbers, which a seed may change."""
    return re.sub(r"\d+", "#", what)


def _row(promise: str, what: str, figure: float, bar: float, seconds: float) -> str:
    kept = "yes" if figure <= bar else "**no**"
    return " | ".join((promise, what, f"{figure:g}", f"{bar:g}", kept, f"{seconds:.0f}"))


def _order(row: tuple[str, str]) -> tuple[str, int, str]:
    promise, what = row
    return promise[:1], int(promise[1:] or 0), what
