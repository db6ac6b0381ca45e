"""What the README tells people to type exists, and what it shows is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from coordinator.cli import app as coordinator_app
from edge_sdk.cli import app as agent_app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
APPS = {"coordinator": coordinator_app, "edge-agent": agent_app}


def typed_commands() -> list[list[str]]:
    """Every command of this project in an indented block or between back-ticks, words split, continuations joined."""
    blocks = re.sub(r"\\\n\s*", " ", README)
    lines = re.findall(r"^    (.+)$", blocks, re.MULTILINE) + re.findall(r"`([^`\n]+)`", README)
    words = (shlex.split(line.split(" #")[0].rstrip("& ")) for line in lines if "'" not in line)
    return [found for found in words if found and found[0].removeprefix(".venv/bin/") in APPS and len(found) > 1]


@pytest.mark.parametrize("words", typed_commands(), ids=" ".join)
def test_command_in_readme_parses(words: list[str]) -> None:
    command = get_command(APPS[words[0].removeprefix(".venv/bin/")])
    context = typer.Context(command)
    arguments = words[1:]
    while hasattr(command, "resolve_command"):
        if command.invoke_without_command and (not arguments or arguments[0].startswith("-")):
            break
        _, command, arguments = command.resolve_command(context, arguments)
        assert command is not None
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in arguments if word.startswith("--")} <= options | {"--help"}


def test_readme_names_enough_commands() -> None:
    assert len(typed_commands()) >= 8


def test_pictures_and_files_in_readme_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_in_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^    |`)make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
