"""The demo as one HTML file that stands alone: plots as inline SVG, tables as HTML, nothing fetched from anywhere."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from coordinator.demo.outcome import Outcome, TaskOutcome
from coordinator.demo.view import WIDTHS, mib, percent
from coordinator.plots import svg

_COLOURS = dict(zip(WIDTHS, ("#1f4e9c", "#d1662b", "#2f8f5b"), strict=True))
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; background: #fff; border-radius: 8px; padding: .5rem; }
svg { width: 100%; height: auto; }
"""


def write_report(outcome: Outcome, page: Path, picture: Path) -> None:
    """Write the page, and the picture that sums it up."""
    page.write_text(render(outcome), encoding="utf-8")
    picture.write_text(_svg(_PANELS, outcome), encoding="utf-8")


def render(outcome: Outcome) -> str:
    """The page."""
    sections = [
        f"<h1>{len(outcome.devices)} unequal devices train {html.escape(outcome.model)}</h1>",
        f"<p>{html.escape(summary(outcome))}</p>",
        *(f"<figure>{_svg([panel], outcome)}</figure>" for panel in _PANELS),
        *_tables(outcome),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    body = "\n".join(sections)
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>raffm-edge demo</title></head><body>{body}</body></html>\n'
    )


def summary(outcome: Outcome) -> str:
    """The result in one sentence."""
    final, rounds = outcome.elastic.final, len(outcome.elastic.rounds)
    text = f"After {rounds} rounds the global model answers {percent(final.get('full'))} of the test texts"
    text += f", its half {percent(final.get('half'))} and its quarter {percent(final.get('quarter'))}"
    if outcome.able_only is not None:
        other = outcome.able_only.final
        text += f"; trained by the able devices alone {', '.join(percent(other.get(width)) for width in WIDTHS)}"
    return f"{text}. {mib(outcome.elastic.bytes_moved)} were moved; this run took {outcome.seconds:.0f} s."


def draw_accuracy(axes: Axes, outcome: Outcome) -> None:
    """Solid: all devices; dashed: only the able ones."""
    for task, line in zip(outcome.tasks, ("-", "--"), strict=False):
        for width in WIDTHS:
            points = [(number, 100 * found[width]) for number, found in _accuracies(task) if width in found]
            who = "all devices" if line == "-" else "able only"
            axes.plot(*zip(*points, strict=True), line, color=_COLOURS[width], marker="o", label=f"{width}, {who}")
    axes.set(xlabel="round", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", fontsize="small", ncols=2)


def draw_bytes(axes: Axes, outcome: Outcome) -> None:
    """One rising line a run."""
    for task, label in zip(outcome.tasks, ("all devices", "able only"), strict=False):
        axes.plot([row.number for row in task.rounds], _running_mib(task), marker="o", label=label)
    axes.set(xlabel="round", ylabel="MiB moved so far", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", fontsize="small")


def draw_memory(axes: Axes, outcome: Outcome) -> None:
    """A pair of bars a device: predicted beside measured."""
    rows = [row for row in outcome.devices if row.predicted_memory_bytes and row.measured_memory_bytes]
    places = range(len(rows))
    axes.bar(
        [x - 0.2 for x in places], [(row.predicted_memory_bytes or 0) / 2**20 for row in rows], 0.4, label="predicted"
    )
    axes.bar(
        [x + 0.2 for x in places], [(row.measured_memory_bytes or 0) / 2**20 for row in rows], 0.4, label="measured"
    )
    axes.set(ylabel="MiB")
    axes.set_xticks(list(places), [row.device for row in rows], rotation=20, ha="right", fontsize="small")
    axes.legend(loc="upper right", fontsize="small")


Panel = Callable[[Axes, Outcome], None]
_PANELS: Sequence[tuple[str, Panel]] = (
    ("Accuracy on the test texts", draw_accuracy),
    ("Bytes moved, both ways", draw_bytes),
    ("Peak memory of training", draw_memory),
)


def _accuracies(task: TaskOutcome) -> list[tuple[int, Mapping[str, float]]]:
    return [(0, task.before), *((row.number, row.accuracy) for row in task.rounds)]


def _running_mib(task: TaskOutcome) -> list[float]:
    total, sums = 0, []
    for row in task.rounds:
        total += row.bytes_moved
        sums.append(total / 2**20)
    return sums


def _svg(panels: Sequence[tuple[str, Panel]], outcome: Outcome) -> str:
    return svg([(title, partial(_draw, draw, outcome)) for title, draw in panels])


def _draw(draw: Panel, outcome: Outcome, axes: Axes) -> None:
    draw(axes, outcome)


def _tables(outcome: Outcome) -> Iterable[str]:
    yield "<h2>Devices</h2>" + _table(
        ("device", "profile", "trained", "of full", "predicted", "measured", "runs", "of full", "accuracy", "latency"),
        (
            (
                row.device,
                row.profile,
                row.trained or "-",
                percent(row.share_of_full),
                mib(row.predicted_memory_bytes),
                mib(row.measured_memory_bytes),
                row.inference or "-",
                percent(row.inference_share),
                f"{percent(row.accuracy)} of {row.samples}",
                "-" if row.latency_ms is None else f"{row.latency_ms:.1f} ms",
            )
            for row in outcome.devices
        ),
    )
    for task in outcome.tasks:
        yield f"<h2>{html.escape(task.title)}</h2>" + _table(
            ("round", "updates", *WIDTHS, "moved", "time"),
            (
                (
                    str(row.number),
                    str(row.updates),
                    *(percent(row.accuracy.get(width)) for width in WIDTHS),
                    mib(row.bytes_moved),
                    f"{row.seconds:.0f} s",
                )
                for row in task.rounds
            ),
        )


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(headings, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
