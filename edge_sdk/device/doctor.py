"""``edge-agent doctor``: what was found, what is missing, and what to do, in words.

A check returns findings and never ends the doctor: what it needs is imported inside it, and a package that is missing
or a file that cannot be read is a finding of its own. The agent can run where no finding is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from edge_sdk.device.system import System
from edge_sdk.errors import RaffmError, UnfitDeviceError
from edge_sdk.transport.address import MqttVersion


class Mark(str, Enum):
    """Fine, fine but worth knowing, and what keeps the agent from running."""

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


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined: the machine, and how its owner means to run the agent; ``None`` is the agent's own default."""

    system: System
    state_dir: Path | None = None
    profile: str | None = None
    broker: str | None = None
    user: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    allow_plaintext: bool = False
    mqtt_version: MqttVersion = MqttVersion.ANY


Check = Callable[[Patient], Iterator[Finding]]


def examine(patient: Patient, checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """What all checks find, in their order."""
    return [finding for name, check in checks for finding in _survive(name, check, patient)]


def _survive(name: str, check: Check, patient: Patient) -> Iterator[Finding]:
    try:
        yield from check(patient)
    except ImportError as error:
        yield Finding(name, Mark.FAILURE, f"not known: {error}", f"pip install {error.name or 'raffm-edge'}")
    except (OSError, RaffmError) as error:
        yield Finding(name, Mark.FAILURE, f"not known: {error}")


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """The findings for programs."""
    return {"can_run": can_run(findings), "findings": [asdict(finding) for finding in findings]}


def can_run(findings: Sequence[Finding]) -> bool:
    """Whether nothing that an agent needs is missing."""
    return all(finding.mark is not Mark.FAILURE for finding in findings)


def show(findings: Sequence[Finding]) -> None:
    """Print the findings as a table."""
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("", "check", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        table.add_row(_SIGNS[finding.mark], finding.check, escape(finding.found), escape(finding.advice))
    Console().print(table)


def require_fit(findings: Sequence[Finding]) -> None:
    """Raise ``UnfitDeviceError``, naming the checks that failed, where an agent cannot run."""
    failed = [finding.check for finding in findings if finding.mark is Mark.FAILURE]
    if failed:
        raise UnfitDeviceError(f"the agent cannot run here, see above: {', '.join(failed)}")
