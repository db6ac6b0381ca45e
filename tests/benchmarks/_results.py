"""The table of the newest figures, committed beside the benchmarks: ``--record`` brings a row up to date."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from tests.benchmarks._measure import Figure
from tests.support.origin import commit, machine

RESULTS = Path(__file__).parent / "RESULTS.md"
_HEAD = f"""# What was measured

Written by `make bench`, or `python -m tests.benchmarks NAME [OPTION ...] --record`, each row by the run of its date and
commit. A figure is a ratio or a difference taken in one run; it holds where it is at most its bar.
On {machine()}.

| benchmark | figure | bar | holds | unit | and | date | commit |
|---|---:|---:|---|---|---|---|---|"""


def record(figure: Figure, options: Sequence[str]) -> None:
    """Put ``figure`` in the place of the one that the same benchmark had with the same ``options``."""
    name = " ".join((figure.benchmark, *options))
    more = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in figure.more.items())
    holds = "yes" if figure.figure <= figure.bar else "**no**"
    cells = (f"`{name}`", f"{figure.figure:.4g}", f"{figure.bar:g}", holds, figure.unit, more)
    rows = _rows() | {cells[0]: " | ".join((*cells, f"{datetime.now(timezone.utc):%Y-%m-%d}", commit()))}
    RESULTS.write_text("\n".join((_HEAD, *(f"| {rows[key]} |" for key in sorted(rows)), "")), encoding="utf-8")


def _rows() -> dict[str, str]:
    """What the table has, by its first cell."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    found = (line.removeprefix("| ").removesuffix(" |") for line in lines if line.startswith("| `"))
    return {row.partition(" | ")[0]: row for row in found}
