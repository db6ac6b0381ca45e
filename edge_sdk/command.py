"""How a command of the project ends: with a documented exit code, and after a mistake with one line that says so."""

from __future__ import annotations

from typing import NoReturn

import typer
from typer.exceptions import TyperException

from edge_sdk.errors import ConfigurationError, RaffmError
from edge_sdk.logs import complain

_INTERRUPTED = 130


def run(app: typer.Typer, name: str) -> NoReturn:
    """Run the command line's words by ``app``, the command ``name``, and end the process."""
    try:
        code = app(prog_name=name, standalone_mode=False)
    except RaffmError as error:
        complain(name, error)
        raise SystemExit(error.exit_code) from None
    except TyperException as error:
        mistake = _mistake(error)
        if mistake is not None:
            complain(name, mistake)
        raise SystemExit(ConfigurationError.exit_code) from None
    except typer.Abort:
        raise SystemExit(_INTERRUPTED) from None
    raise SystemExit(code)


def _mistake(error: TyperException) -> ConfigurationError | None:
    """In one line, with the command whose help says more; ``None`` where that help is on the screen already."""
    told = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    where = "" if context is None else f"; see: {context.command_path} --help"
    return ConfigurationError(told + where) if told else None
