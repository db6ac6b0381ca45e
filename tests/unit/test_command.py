"""Mistyped commands end in one line and exit code 2; a command without a word shows its help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

import coordinator.cli
import edge_sdk.cli

MAIN = {"edge-agent": edge_sdk.cli.main, "coordinator": coordinator.cli.main}


def typed(line: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code."""
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as ended:
        MAIN[line.split(maxsplit=1)[0]]()
    return ended.value.code


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("edge-agent run --threads many", "Invalid value for '--threads': 'many' is not a valid int"),
        ("edge-agent run --broker", "Option '--broker' requires an argument"),
        ("edge-agent rum", "No such command 'rum'"),
        ("coordinator serve --port 1", "No such option: --port"),
        ("coordinator task create t --rounds x", "Invalid value for '--rounds': 'x' is not a valid int"),
        ("coordinator task stop --state-dir s", "Missing argument"),
        ("coordinator root rotate b --from a --root-threshold 2", "--root-threshold 2 needs the keys that it counts"),
    ],
)
def test_mistyped_command(
    line: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(line, monkeypatch) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith(f"{line.split(maxsplit=1)[0]}: {told}")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "package", "error", "told"),
    [
        (
            "coordinator.cli demo",
            "sqlalchemy",
            "ModuleNotFoundError('No module named sqlalchemy', name='sqlalchemy')",
            "coordinator: No module named sqlalchemy; pip install 'raffm-edge[coordinator]'\n",
        ),
        (
            "edge_sdk.cli run --device a --broker mqtt://127.0.0.1:1",
            "numpy",
            "ImportError('IMPORTANT: PLEASE READ THIS\\n\\nOriginal error was: no libstdc++.so.6\\n')",
            "edge-agent: Original error was: no libstdc++.so.6; `edge-agent doctor` tells what else is missing\n",
        ),
    ],
)
def test_package_that_is_missing_is_one_line(line: str, package: str, error: str, told: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise {error}", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", *line.split()]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.parametrize("command", MAIN)
def test_command_without_a_word_shows_its_help_once(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(command, monkeypatch) == 2
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("Usage:") == 1


def test_help_is_no_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("coordinator --help", monkeypatch) == 0
    assert "Usage:" in capsys.readouterr().out


@pytest.mark.parametrize("app", [coordinator.cli.app, edge_sdk.cli.app], ids=["coordinator", "edge-agent"])
def test_every_command_and_option_has_a_sentence_of_help(app: typer.Typer) -> None:
    told = dict(help_texts(get_command(app), ""))
    assert len(told) > 50
    assert [name for name, text in told.items() if not text or text[-1] not in ".…" or text[:3] == "Of "] == []


@pytest.mark.parametrize(("name", "app"), [("coordinator", coordinator.cli.app), ("edge-agent", edge_sdk.cli.app)])
def test_names_and_summaries_are_whole_on_80_columns(
    name: str, app: typer.Typer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for line, command in lines(get_command(app), name):
        typed(f"{line} --help", monkeypatch)
        told = capsys.readouterr().out
        assert all(option in told for each in command.params for option in (*each.opts, *each.secondary_opts)), told
        assert "..." not in told.partition("Commands:")[2]


def lines(command: Any, line: str) -> Iterator[tuple[str, Any]]:
    """What to type for the help of a command and of everything below it."""
    yield line, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from lines(inner, f"{line} {name}")


def help_texts(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """By its name, the help of a command and of everything below it."""
    yield path, command.help or ""
    for each in command.params:
        yield f"{path} {each.name}", getattr(each, "help", None) or ""
    for name, inner in getattr(command, "commands", {}).items():
        yield from help_texts(inner, f"{path} {name}")


@pytest.mark.parametrize("command", MAIN)
def test_version_is_said(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"{command} --version", monkeypatch) == 0
    assert capsys.readouterr().out == f"raffm-edge {edge_sdk.__version__}\n"


@pytest.mark.parametrize("line", [*MAIN, "edge-agent run"])
def test_paragraphs_of_a_help_text_fill_their_lines(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    typed(f"{line} --help", monkeypatch)
    told = [part.strip() for part in capsys.readouterr().out.partition("Options:")[0].splitlines()]
    broken = [first for first, then in pairwise(told) if then and len(first) < 50 and first]
    assert not broken, told
    assert ":mod:" not in " ".join(told)


def test_sign_that_the_locale_lacks_ends_no_command() -> None:
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "edge_sdk.cli", "doctor", "--json", "--profile", "no-such-\u2713"]
    done = subprocess.run(command, env=latin, capture_output=True, check=False)
    assert b"UnicodeEncodeError" not in done.stderr
    assert b"no-such-?" in done.stdout


def test_command_that_takes_long_says_on_a_terminal_what_it_is_busy_with(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_sdk.cli", "profile", "--json", "--state-dir", str(tmp_path)]
    terminal, its_end = os.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=its_end, env=environment, check=True)
    os.close(its_end)
    with os.fdopen(terminal, "rb", buffering=0) as shown, suppress(OSError):  # at its end there is nothing to read
        assert b"measuring this machine" in shown.read(1 << 16)
        return
    pytest.fail("nothing was shown")


def test_command_that_takes_long_says_nothing_into_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge_sdk.cli", "profile", "--json", "--state-dir", str(tmp_path)]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stderr == b""
    assert "gflops" in json.loads(piped.stdout)
