"""The demo in a terminal: tables from the outcome's rows."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table

from coordinator.demo.outcome import DeviceRow, Outcome, TaskOutcome

WIDTHS = ("full", "half", "quarter")


def show(outcome: Outcome, console: Console) -> None:
    """Print everything."""
    console.print(device_table(outcome), round_table(outcome.elastic))
    if outcome.able_only is not None:
        console.print(round_table(outcome.able_only), comparison_table(outcome.elastic, outcome.able_only))


def device_table(outcome: Outcome) -> Group:
    """Two tables of one row a device: what it trained, and what it runs now."""
    trained = Table(title=f"What each device trained of {outcome.model}", title_justify="left")
    for heading in (
        "device",
        "profile",
        "heads/FFN",
        "parameters",
        "memory predicted",
        "measured",
        "down",
        "up",
        "time",
    ):
        trained.add_column(heading, justify="left" if heading in {"device", "profile"} else "right", overflow="fold")
    serving = Table(title="What each device runs now, on its own held-out texts", title_justify="left")
    for heading in ("device", "trained", "runs", "accuracy", "texts", "latency", "failures"):
        serving.add_column(heading, justify="left" if heading in {"device", "failures"} else "right", overflow="fold")
    for row in outcome.devices:
        trained.add_row(*_training_cells(row))
        serving.add_row(*_serving_cells(row))
    return Group(trained, serving)


def round_table(task: TaskOutcome) -> Table:
    """One row a round."""
    table = Table(title=task.title, title_justify="left")
    for heading in ("round", "updates", *WIDTHS, "moved", "time"):
        table.add_column(heading, justify="right")
    for row in task.rounds:
        accuracies = (percent(row.accuracy.get(width)) for width in WIDTHS)
        table.add_row(str(row.number), str(row.updates), *accuracies, mib(row.bytes_moved), f"{row.seconds:.0f} s")
    return table


def comparison_table(elastic: TaskOutcome, able_only: TaskOutcome) -> Table:
    """The two runs side by side, and the difference in points."""
    table = Table(
        title="All devices, each with its part, against only those able to train everything", title_justify="left"
    )
    for heading in ("accuracy of", "all devices", "able only", "gain"):
        table.add_column(heading, justify="left" if heading == "accuracy of" else "right")
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


def _training_cells(row: DeviceRow) -> tuple[str, ...]:
    parameters = "-"
    if row.parameters is not None and row.share_of_full is not None:
        parameters = f"{row.parameters / 1e6:.1f} M ({percent(row.share_of_full)})"
    return (
        row.device,
        row.profile,
        row.trained or "-",
        parameters,
        mib(row.predicted_memory_bytes),
        mib(row.measured_memory_bytes),
        mib(row.downloaded_bytes),
        mib(row.uploaded_bytes),
        f"{row.seconds:.0f} s",
    )


def _serving_cells(row: DeviceRow) -> tuple[str, ...]:
    latency = "-" if row.latency_ms is None else f"{row.latency_ms:.1f} ms"
    return (
        row.device,
        percent(row.share_of_full),
        f"{row.inference} ({percent(row.inference_share)})" if row.inference else "-",
        percent(row.accuracy),
        str(row.samples),
        latency,
        ", ".join(row.failures) or "none",
    )
