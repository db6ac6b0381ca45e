"""Runs a command line so that it ends with a documented exit code and reports a user's mistake in one line."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from edge_sdk import __version__
from edge_sdk.errors import ConfigurationError, RaffmError
from edge_sdk.logs import complain

_INTERRUPTED = 130
_MAX_COLUMNS = 100  # of a help text, however wide the terminal is
_OURS = {"edge_sdk", "coordinator"}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"raffm-edge {__version__}")
        raise typer.Exit


def with_version(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options that both commands take before a subcommand: the ``callback`` of a ``Typer``."""


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal what a command that takes more than a second is busy with; elsewhere nothing."""
    from rich.console import Console  # noqa: PLC0415 - most commands show nothing

    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else nullcontext():
        yield


def run(app: typer.Typer, name: str, cure: str) -> NoReturn:
    """Run ``app`` on the process's arguments, under the command's ``name``, and end the process.

    ``cure`` says what to do where another package cannot be imported.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the locale lacks must not end the command
    app.rich_markup_mode = None  # its panels cut the names of options on a terminal of 80 columns
    command = get_command(app)
    _summarise(command)
    try:
        code = command(prog_name=name, standalone_mode=False, max_content_width=_MAX_COLUMNS)
    except RaffmError as error:
        complain(name, error)
        raise SystemExit(error.exit_code) from None
    except TyperException as error:
        mistake = _mistake(error)
        if mistake is not None:
            complain(name, mistake)
        raise SystemExit(ConfigurationError.exit_code) from None
    except ImportError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        complain(name, ConfigurationError(f"{(str(error).strip() or repr(error)).splitlines()[-1]}; {cure}"))
        raise SystemExit(ConfigurationError.exit_code) from None
    except typer.Abort:
        raise SystemExit(_INTERRUPTED) from None
    raise SystemExit(code)


def _summarise(command: Any) -> None:  # noqa: ANN401 - a Command, which typer keeps to itself
    """In a list of commands, tell the whole summary of each; typer ends it where the line does."""
    for inner in getattr(command, "commands", {}).values():
        inner.short_help = (inner.help or "").partition("\n\n")[0]
        _summarise(inner)


def _mistake(error: TyperException) -> ConfigurationError | None:
    """The error as one line that names the command to ask for help; ``None`` if the help has been printed already."""
    told = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    where = "" if context is None else f"; see: {context.command_path} --help"
    return ConfigurationError(told + where) if told else None
