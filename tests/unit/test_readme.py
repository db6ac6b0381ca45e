"""What the README tells people to type exists, and what it shows is there."""

from __future__ import annotations

import ast
import builtins
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from coordinator.cli import app as coordinator_app
from coordinator.config import task_of_toml
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
    for target in re.findall(r"(?:^    |`)make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


PROGRAMS = re.findall(r"```python\n(.+?)```", README, re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.split()[-1])
def test_program_in_readme_has_every_name_that_it_uses(program: str) -> None:
    nodes = list(ast.walk(ast.parse(program)))
    known = {alias.name for node in nodes if isinstance(node, ast.ImportFrom | ast.Import) for alias in node.names}
    known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    known |= {name.id for name in names if isinstance(name.ctx, ast.Store)} | set(dir(builtins))
    assert {name.id for name in names} <= known


def test_task_in_readme_is_one_of_the_demo_s_data(tmp_path: Path) -> None:
    (text,) = re.findall(r"^    # nightly\.toml.+?\n\n", README, re.DOTALL | re.MULTILINE)
    task = task_of_toml(textwrap.dedent(text).encode(), "README", tmp_path)
    assert Path(task.test_file) == tmp_path / "demo-state/data/test.csv"
    assert task.data.labels == ("business", "entertainment", "politics", "sports", "tech")
