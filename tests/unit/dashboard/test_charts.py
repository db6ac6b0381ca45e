"""The chart of accuracies: its bounds, its labels, and what it says of each round."""

from __future__ import annotations

from itertools import pairwise

import pytest

from coordinator.dashboard.charts import accuracy_chart, shown_widths
from coordinator.store.records import EvaluationRecord

BOX = (800.0, 300.0)


def evaluated(**curves: list[float]) -> list[EvaluationRecord]:
    sizes = {"full": 100, "three-quarters": 80, "half": 60, "quarter": 40}
    return [
        EvaluationRecord("news", number, width, sizes.get(width, 10), accuracy, 1.0, 50)
        for width, accuracies in curves.items()
        for number, accuracy in enumerate(accuracies)
    ]


def test_higher_accuracy_is_higher_up_and_later_is_further_right() -> None:
    chart = accuracy_chart(evaluated(full=[0.5, 0.9], half=[0.4, 0.6]), *BOX)
    lines = {line.name: line for line in chart.lines}
    (x0, y0), (x1, y1) = lines["full"].points
    assert (x0 < x1, y0 > y1) == (True, True)
    assert lines["half"].points[1][1] > y1
    assert (lines["full"].last, chart.stops[1].values) == (90.0, (("full", 90.0), ("half", 60.0)))


@pytest.mark.parametrize("accuracies", [[0.5], [0.0, 1.0], [0.912, 0.913], [1.0, 1.0], [0.0]])
def test_everything_lies_between_the_lowest_and_the_highest_line_of_the_grid(accuracies: list[float]) -> None:
    chart = accuracy_chart(evaluated(full=accuracies), *BOX)
    heights = [y for y, _ in chart.grid]
    assert 2 <= len(heights) <= 7
    assert all(min(heights) <= y <= max(heights) for _, y in chart.lines[0].points)
    assert all(0 <= x <= chart.right for x, _ in chart.lines[0].points)


def test_labels_of_lines_that_end_together_are_apart() -> None:
    chart = accuracy_chart(evaluated(full=[0.9, 0.95], half=[0.8, 0.95], quarter=[0.7, 0.95]), *BOX)
    heights = sorted(line.label_y for line in chart.lines)
    assert min(after - before for before, after in pairwise(heights)) >= 16


def test_many_rounds_have_few_ticks_and_a_stop_each() -> None:
    chart = accuracy_chart(evaluated(full=[0.5] * 200), *BOX)
    assert (len(chart.ticks) <= 8, len(chart.stops)) == (True, 200)
    assert sum(stop.width for stop in chart.stops) == pytest.approx(chart.right - chart.stops[0].left, abs=20)


def test_full_half_and_quarter_are_shown_else_the_largest() -> None:
    assert shown_widths(evaluated(full=[0.5], **{"three-quarters": [0.5]}, quarter=[0.5])) == ("full", "quarter")
    assert shown_widths(evaluated(**{"three-quarters": [0.5]}, **{"10%": [0.5]})) == ("three-quarters", "10%")
    assert accuracy_chart([], *BOX) is None
