from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console

from coordinator.demo.outcome import DeviceRow, Outcome, RoundRow, TaskOutcome
from coordinator.demo.report import render, summary, write_report
from coordinator.demo.view import show

DEVICE = DeviceRow(
    device="pi-<5>",
    profile="raspberry-pi-5-8gb",
    trained="6/768",
    parameters=17_400_000,
    share_of_full=0.77,
    predicted_memory_bytes=200 << 20,
    measured_memory_bytes=210 << 20,
    downloaded_bytes=50 << 20,
    uploaded_bytes=20 << 20,
    seconds=12.3,
    failures=("round 1: out-of-memory",),
    inference="12/1536",
    inference_share=1.0,
    accuracy=0.95,
    samples=20,
    latency_ms=7.7,
)
ROUND = RoundRow(1, {"full": 0.9, "half": 0.8, "quarter": 0.7}, 3, 100 << 20, 9.0)
ELASTIC = TaskOutcome("All <devices>", {"full": 0.5, "half": 0.4, "quarter": 0.3}, (ROUND, replace(ROUND, number=2)))
ABLE = TaskOutcome("Able only", {}, (replace(ROUND, accuracy={"full": 0.85, "half": 0.6, "quarter": 0.35}),))
OUTCOME = Outcome(model="MiniLM", seconds=99.0, devices=(DEVICE,), elastic=ELASTIC, able_only=ABLE)
NEVER_TRAINED = replace(
    DEVICE, trained=None, parameters=None, share_of_full=None, measured_memory_bytes=None, inference=None, accuracy=None
)


def shown(outcome: Outcome) -> str:
    console = Console(width=80, file=io.StringIO())
    show(outcome, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_page_escapes_what_users_named() -> None:
    page = render(OUTCOME)
    assert "pi-<5>" not in page.replace("pi-&lt;5&gt;", "")
    assert "All &lt;devices&gt;" in page


def test_page_stands_alone_with_three_plots() -> None:
    page = render(OUTCOME)
    assert page.count("<svg") == 3
    assert "http-equiv" not in page
    assert "src=" not in page


def test_picture_is_well_formed_svg(tmp_path: Path) -> None:
    write_report(OUTCOME, tmp_path / "report.html", tmp_path / "report.svg")
    assert ET.parse(tmp_path / "report.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own file


def test_summary_names_every_accuracy() -> None:
    text = summary(OUTCOME)
    for figure in ("90.0 %", "80.0 %", "70.0 %", "85.0 %", "60.0 %", "35.0 %", "99 s"):
        assert figure in text


def test_terminal_shows_the_gain_in_points_within_80_columns() -> None:
    text = shown(OUTCOME)
    assert "+20.0 points" in text
    assert max(map(len, text.splitlines())) <= 80


def test_device_that_never_trained_is_shown_with_dashes() -> None:
    outcome = replace(OUTCOME, devices=(NEVER_TRAINED,), able_only=None)
    assert "pi-<5>" in shown(outcome)
    assert "<svg" in render(outcome)
