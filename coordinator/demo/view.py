"""The demo in a terminal: tables from the outcome's rows, narrow enough for 80 columns."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from coordinator.demo.outcome import DeviceRow, Outcome, TaskOutcome

WIDTHS = ("full", "half", "quarter")
_WORDS = {"device", "profile", "failures", "accuracy of"}


def show(outcome: Outcome, console: Console) -> None:
    """Print everything."""
    console.print(training_table(outcome), serving_table(outcome), round_table(outcome.elastic))
    if outcome.able_only is not None:
        console.print(round_table(outcome.able_only), comparison_table(outcome.elastic, outcome.able_only))


def training_table(outcome: Outcome) -> Table:
    """What each device trained last, what that took, and what it moved in all rounds."""
    headings = ("device", "heads/FFN", "parameters", "predicted", "measured", "down", "up", "s")
    table = _table(f"What each device trained of {outcome.model}, and its peak memory (MiB)", *headings)
    for row in outcome.devices:
        table.add_row(*_training_cells(row))
    return table


def serving_table(outcome: Outcome) -> Table:
    """What each device runs now."""
    headings = ("device", "profile", "runs", "accuracy", "ms", "failures")
    table = _table("What each device runs now, on its own held-out texts (ms for one text)", *headings)
    for row in outcome.devices:
        table.add_row(*_serving_cells(row))
    return table


def round_table(task: TaskOutcome) -> Table:
    """One row a round."""
    table = _table(task.title, "round", "updates", *WIDTHS, "moved", "time")
    for row in task.rounds:
        accuracies = (percent(row.accuracy.get(width)) for width in WIDTHS)
        table.add_row(str(row.number), str(row.updates), *accuracies, mib(row.bytes_moved), f"{row.seconds:.0f} s")
    return table


def comparison_table(elastic: TaskOutcome, able_only: TaskOutcome) -> Table:
    """The two runs side by side, and the difference in points."""
    title = "All devices with their parts, and able ones alone"
    table = _table(title, "accuracy of", "all devices", "able only", "gain")
    for width in WIDTHS:
        ours, theirs = elastic.final.get(width), able_only.final.get(width)
        gain = "-" if ours is None or theirs is None else f"{100 * (ours - theirs):+.1f} points"
        table.add_row(f"{width} model", percent(ours), percent(theirs), gain)
    table.add_row("bytes moved", mib(elastic.bytes_moved), mib(able_only.bytes_moved), "")
    return table


def percent(share: float | None) -> str:
    """A share as per cent, or a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def mib(count_bytes: int | None) -> str:
    """Bytes as MiB, or a dash."""
    return "-" if count_bytes is None else f"{count_bytes / 2**20:.0f} MiB"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _WORDS else "right")
    return table


def _training_cells(row: DeviceRow) -> tuple[str, ...]:
    parameters = "-"
    if row.parameters is not None and row.share_of_full is not None:
        parameters = f"{row.parameters / 1e6:.1f} M, {row.share_of_full:.0%}"
    return (
        row.device,
        row.trained or "-",
        parameters,
        mib(row.predicted_memory_bytes).removesuffix(" MiB"),
        mib(row.measured_memory_bytes).removesuffix(" MiB"),
        mib(row.downloaded_bytes).removesuffix(" MiB"),
        mib(row.uploaded_bytes).removesuffix(" MiB"),
        f"{row.seconds:.0f}",
    )


def _serving_cells(row: DeviceRow) -> tuple[str, ...]:
    return (
        row.device,
        row.profile,
        f"{row.inference}, {row.inference_share:.0%}" if row.inference and row.inference_share else "-",
        f"{percent(row.accuracy)}, n={row.samples}",
        "-" if row.latency_ms is None else f"{row.latency_ms:.0f}",
        ", ".join(row.failures) or "-",
    )
