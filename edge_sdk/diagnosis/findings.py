"""What a doctor finds, and what to do about it, in words.

A check returns findings and never ends the doctor: what it needs is imported inside it, and a package that is missing
or a file that cannot be read is a finding of its own. Who is examined can run where no finding is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TypeVar

from edge_sdk.errors import RaffmError

_P = TypeVar("_P")


class Mark(str, Enum):
    """Fine, fine but worth knowing, and what keeps the patient from running."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


_SIGNS = {Mark.OK: "[green]✓[/]", Mark.WARNING: "[yellow]![/]", Mark.FAILURE: "[red]✗[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``found`` is what is so, ``advice`` what to do about it, empty where nothing has to be done."""

    check: str
    mark: Mark
    found: str
    advice: str = ""


def examine(patient: _P, checks: Sequence[tuple[str, Callable[[_P], Iterator[Finding]]]]) -> list[Finding]:
    """What all checks find, in their order."""
    return [finding for name, check in checks for finding in _survive(name, check, patient)]


def _survive(name: str, check: Callable[[_P], Iterator[Finding]], patient: _P) -> Iterator[Finding]:
    try:
        yield from check(patient)
    except ImportError as error:
        yield Finding(name, Mark.FAILURE, f"not known: {error}", f"pip install {error.name or 'raffm-edge'}")
    except (OSError, RaffmError) as error:
        yield Finding(name, Mark.FAILURE, f"not known: {error}")


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """The findings for programs."""
    return {"can_run": not failed(findings), "findings": [asdict(finding) for finding in findings]}


def failed(findings: Sequence[Finding]) -> list[str]:
    """The names of the checks that found what keeps the patient from running, each once."""
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
