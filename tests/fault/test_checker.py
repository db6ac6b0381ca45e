"""The judge of histories, on histories that are known to be good or bad."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.support.checker import Judgement, judge
from tests.support.history import History, Kind, Operation

BEGUN = [Operation("update", Kind.INVOKE, name, 1, update) for name, update in (("a", "u1"), ("b", "u2"))]
ACCEPTED = [Operation("update", Kind.OK, it.process, 1, it.update) for it in BEGUN]
MADE = Operation("aggregate", Kind.OK, "coordinator", 1, updates=("u1", "u2"), digest="d1")
VERSION = Operation("version", Kind.OK, "store", 1, digest="d1")
GOOD = [*BEGUN, *ACCEPTED, MADE, VERSION]


def changed(operation: Operation, **fields: object) -> Operation:
    return msgspec.structs.replace(operation, **fields)


def test_history_of_an_undisturbed_round_holds() -> None:
    assert judge(GOOD) == Judgement()


def test_round_aggregated_again_after_a_crash_holds() -> None:
    assert judge([*BEGUN, *ACCEPTED, MADE, MADE, VERSION]).holds


@pytest.mark.parametrize(
    ("history", "what"),
    [
        ([*BEGUN, *ACCEPTED, changed(MADE, updates=("u1",)), VERSION], "lost"),
        ([*BEGUN, *ACCEPTED], "lost"),
        ([*BEGUN, *ACCEPTED, changed(MADE, updates=("u1", "u2", "u2")), VERSION], "double"),
        ([*GOOD, changed(BEGUN[0], update="u3"), changed(MADE, updates=("u1", "u2", "u3")), VERSION], "double"),
        ([*GOOD, changed(MADE, updates=("u1", "u2", "u9"))], "strange"),
        ([*GOOD, changed(MADE, digest="d2")], "strange"),
        ([*BEGUN, *ACCEPTED, MADE, changed(VERSION, digest="d9")], "strange"),
        ([*BEGUN, ACCEPTED[0], MADE, VERSION], "open"),
    ],
)
def test_history_that_is_wrong_is_found(history: list[Operation], what: str) -> None:
    assert getattr(judge(history), what)


@pytest.mark.parametrize(("history", "code", "says"), [(GOOD, 0, ""), (BEGUN, 1, "open: u1\nopen: u2\n")])
def test_checker_is_a_program(tmp_path: Path, history: list[Operation], code: int, says: str) -> None:
    with closing(History(tmp_path / "history")) as written:
        for operation in history:
            written.add(operation)
    command = (sys.executable, "-m", "tests.support.checker", str(tmp_path / "history"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, says)
