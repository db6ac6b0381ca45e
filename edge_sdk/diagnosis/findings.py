"""What a doctor finds, and what to do about it, in words.

A check returns findings and never ends the doctor: it imports what it needs by itself, and a missing package or an
unreadable file is a finding, too. An agent or coordinator can run if no finding is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TypeVar

from edge_sdk.errors import RaffmError

_P = TypeVar("_P")


class Mark(str, Enum):
    """How serious a finding is; a failure keeps the agent or coordinator from running."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


_SIGNS = {Mark.OK: "[green]✓[/]", Mark.WARNING: "[yellow]![/]", Mark.FAILURE: "[red]✗[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``found`` is what was observed, ``advice`` what to do about it, empty if nothing."""

    check: str
    mark: Mark
    found: str
    advice: str = ""


def examine(patient: _P, checks: Sequence[tuple[str, Callable[[_P], Iterator[Finding]]]]) -> list[Finding]:
    """The findings of all checks, in their order."""
    return [finding for name, check in checks for finding in _survive(name, check, patient)]


def _survive(name: str, check: Callable[[_P], Iterator[Finding]], patient: _P) -> Iterator[Finding]:
    try:
        yield from check(patient)
    except ImportError as error:
        yield Finding(name, Mark.FAILURE, f"cannot be checked: {error}", f"pip install {error.name or 'raffm-edge'}")
    except (OSError, RaffmError) as error:
        yield Finding(name, Mark.FAILURE, f"cannot be checked: {error}")


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """The findings for programs."""
    return {"can_run": not failed(findings), "findings": [asdict(finding) for finding in findings]}


def failed(findings: Sequence[Finding]) -> list[str]:
    """The names of the checks that found a failure, each once."""
    return list(dict.fromkeys(finding.check for finding in findings if finding.mark is Mark.FAILURE))


def show(findings: Sequence[Finding]) -> None:
    """Print the findings as a table."""
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("", "check", box=None, pad_edge=False)
    for heading in ("found", "what to do"):
        table.add_column(heading, overflow="fold")  # a path that is longer than its column stays whole
    for finding in findings:
        table.add_row(_SIGNS[finding.mark], finding.check, escape(finding.found), escape(finding.advice))
    Console().print(table)
