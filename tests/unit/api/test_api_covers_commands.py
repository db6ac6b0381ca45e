"""The table in the API's README is true: every command is there, and every operation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.main import get_command

import coordinator.api
from coordinator.api.app import create_app
from coordinator.cli import app
from coordinator.store.database import Store

README = (Path(coordinator.api.__path__[0]) / "README.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `([a-z ]+)` \|(.*)\|(.*)\|$", re.MULTILINE)
_OPERATION = re.compile(r"`([A-Z]+ /[^`]*)`")


def commands() -> Iterator[str]:
    """Every command that can be typed."""

    def walk(command: object, words: tuple[str, ...]) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if words and (inner is None or command.invoke_without_command):
            yield " ".join(words)
        for name, each in (inner or {}).items():
            yield from walk(each, (*words, name))

    return walk(get_command(app), ())


@pytest.fixture(scope="module")
def operations() -> set[str]:
    with closing(Store("sqlite://")) as store:
        paths = create_app(store).openapi()["paths"]
    return {f"{method.upper()} {path}" for path, known in paths.items() for method in known}


def rows() -> dict[str, tuple[list[str], str]]:
    """What the table says: operations, or a reason, by command."""
    return {command: (_OPERATION.findall(over), why.strip()) for command, over, why in _ROW.findall(README)}


def test_every_command_is_in_the_table_once() -> None:
    assert sorted(commands()) == sorted(command for command, *_ in _ROW.findall(README))
    assert len(rows()) > 40


def test_command_has_operations_or_a_reason(operations: set[str]) -> None:
    for command, (over, why) in rows().items():
        assert bool(over) != bool(why), command
        assert set(over) <= operations, command


def test_every_operation_is_on_the_page(operations: set[str]) -> None:
    assert set(_OPERATION.findall(README)) == operations


def test_table_that_lacks_a_command_would_be_seen() -> None:
    """The control."""
    assert "backup" in rows()
    assert "backup" not in {command for command, *_ in _ROW.findall(README.replace("| `backup` |", "| `back up` x|"))}
