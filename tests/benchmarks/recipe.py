"""The default recipe against its bars: what a fleet of unequal devices reaches, and what other ways to use it reach.

Tasks, each for ``--seeds 0,1,2`` (a seed fixes data, fleet, cohorts and the model's start; all arms of it share them):

    motion       UCI HAPT, six activities. 21 people are devices, a third of which can train the full model, a third
                 half, a third a quarter; 3 other people choose the size to deploy; the last 6 are the test
    motion-tied  the same, but an able device keeps one in ten of its windows on stairs: the weak hold what it lacks
    news         BBC News, MiniLM, embeddings frozen; 8 devices by Dirichlet 0.5 over classes, of shares 1, 3/4,
                 3 x 1/2, 3 x 1/4; a quarter of the articles chooses (a third of it) and tests (the rest)
    gestures     the capacity-bound task, made by :mod:`tests.benchmarks._gestures`; 12 devices by Dirichlet 0.5 over
                 meanings, in thirds as above. It is no natural data, and says nothing but that size can matter

Arms, all with the device's runtime on compiled graphs and the coordinator's aggregation, from the same version 0:

    default recipe        a device trains what it can: coverage weighting with a floor, self-distillation of nested
                          widths, calibrated logits; units ranked by Taylor where the model is pretrained, else not
    A everyone full       plain federated averaging of the full model, which this fleet could not do
    B able only           the same, of the devices that can, at equal rounds
    C everyone a quarter  the same, of the quarter model
    authors' rule         :mod:`tests.benchmarks._recipe_authors`

A, B and C are plain: no nested widths, no calibration, no floor. Every arm's full model is cut to a half and a quarter;
what a device that can run them all deploys is chosen among them as the coordinator does it for a release: the largest
that cannot be told from the best on the examples that choose. The recipe's numbers are the product's defaults
(:mod:`coordinator.config`), but for what a model from scratch needs: ``_recipe_sensors``.

``cut``: MiniLM trained centrally on the devices' articles for one epoch, ranked, and cut without further training.

The figure is the worst shortfall of the means over all bars, in points; at most 0 is a pass.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge_sdk.elastic.runtimes import Runtime
from tests.benchmarks._measure import Figure, show
from tests.benchmarks._recipe_bars import BARS, Bar, cut
from tests.benchmarks._recipe_cut import Cut, play_cut
from tests.benchmarks._recipe_news import news
from tests.benchmarks._recipe_rounds import ARMS, RECIPE, WIDTHS, Arm, Outcome, Problem, Rounds
from tests.benchmarks._recipe_sensors import gestures, motion

TASKS: Mapping[str, Callable[[Path, int, int | None], Problem]] = {
    "motion": partial(motion, tied=False),
    "motion-tied": partial(motion, tied=True),
    "news": news,
    "gestures": gestures,
}
CUT = "cut"
_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Play:
    """One task for one seed: what a process is given."""

    task: str
    seed: int
    rounds: int | None
    runtime: Runtime


def run(arguments: Sequence[str] = ()) -> Figure:
    options = _options(arguments)
    plays = [Play(task, seed, options.rounds, options.runtime) for task in options.tasks for seed in options.seeds]
    with ProcessPoolExecutor(_PROCESSES, multiprocessing.get_context("spawn")) as pool:
        results = dict(zip(plays, pool.map(_play, plays), strict=True))
    bars: dict[str, list[Bar]] = {}
    for task in options.tasks:
        of_seeds = [result for play, result in results.items() if play.task == task]
        bars[task] = _judged_cut(of_seeds) if task == CUT else _judged(task, of_seeds)
    for task, found in bars.items():
        show(f"{task}: shortfall in points, at most 0", [(bar.name, _against(bar)) for bar in found])
    return _figure(bars)


def _play(play: Play) -> Mapping[str, Outcome] | Cut:
    """The outcome of every arm by name, or the cuts."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        if play.task == CUT:
            found = play_cut(Path(name), play.seed)
            _say(f"{CUT}, seed {play.seed}: {found}")
            return found
        problem = TASKS[play.task](Path(name), play.seed, play.rounds)
        outcomes = {}
        for place, arm in enumerate(ARMS):
            folder = Path(name) / f"arm-{place}"
            folder.mkdir()
            outcomes[arm.name] = _rounds(Rounds(problem, arm, folder, play.runtime), arm, play, problem.rounds)
        return outcomes


def _rounds(rounds: Rounds, arm: Arm, play: Play, count: int) -> Outcome:
    """All rounds; the recipe is evaluated at every size after each, as the coordinator does it."""
    started_s = time.monotonic()
    for number in range(1, count + 1):
        rounds.play(number)
        if arm is RECIPE:
            cells = " ".join(f"{100 * judged.accuracy:5.1f}" for judged in rounds.judged().values())
            _say(f"  {play.task}, seed {play.seed}, round {number}: {cells}")
    outcome = rounds.outcome()
    _say(f"{play.task}, seed {play.seed}, {arm.name}: {_cells([outcome])} MB, {time.monotonic() - started_s:.0f} s")
    return outcome


def _say(text: str) -> None:
    """Progress goes to standard error, as there are minutes between results."""
    print(text, file=sys.stderr, flush=True)


def _judged(task: str, of_seeds: Sequence[Mapping[str, Outcome]]) -> list[Bar]:
    by_arm = {arm.name: [outcomes[arm.name] for outcomes in of_seeds] for arm in ARMS}
    title = f"{task}: % right of full, half and quarter, and of the size deployed; MB up ({len(of_seeds)} seeds, ± sd)"
    show(title, [(name, _cells(outcomes)) for name, outcomes in by_arm.items()])
    return BARS[task](by_arm)


def _judged_cut(of_seeds: Sequence[Cut]) -> list[Bar]:
    rows = {}
    for salience in of_seeds[0]:
        widths = of_seeds[0][salience]
        rows[salience] = {width: [found[salience][width] for found in of_seeds] for width in widths}
    title = f"{CUT}: % right at {', '.join(rows['taylor'])} ({len(of_seeds)} seeds, ± sd)"
    show(title, [(salience, " ".join(map(_spread, row.values()))) for salience, row in rows.items()])
    means = {
        salience: {width: statistics.mean(values) for width, values in row.items()} for salience, row in rows.items()
    }
    return cut(means["taylor"], means["l1"])


def _figure(bars: Mapping[str, Sequence[Bar]]) -> Figure:
    worst = {task: max(bar.shortfall for bar in found) for task, found in bars.items()}
    more = {f"{task}_shortfall".replace("-", "_"): round(value, 2) for task, value in worst.items()}
    return Figure("recipe", max(worst.values()), 0.0, "points of accuracy", more)


def _cells(outcomes: Sequence[Outcome]) -> str:
    columns = [[outcome.test[width] for outcome in outcomes] for width in WIDTHS]
    columns.append([outcome.deployed for outcome in outcomes])
    megabytes = statistics.mean(outcome.bytes_up for outcome in outcomes) / 1e6
    return f"{' '.join(map(_spread, columns))}  {megabytes:7.1f}"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):4.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):6.2f}{deviation}"


def _against(bar: Bar) -> str:
    return f"{bar.shortfall:+6.2f}  ({bar.figure:.2f}, at least {bar.least:.2f})"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks recipe")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="comma-separated")
    parser.add_argument("--tasks", type=_tasks, default=[*TASKS, CUT], help=f"of {', '.join([*TASKS, CUT])}")
    parser.add_argument("--rounds", type=int, help="instead of each task's own number")
    parser.add_argument("--runtime", type=Runtime, default=Runtime.ONNX, help="of the devices: onnx or torch")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _tasks(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - {*TASKS, CUT}:
        raise argparse.ArgumentTypeError(f"no task {', '.join(sorted(unknown))}; use {', '.join([*TASKS, CUT])}")
    return chosen
