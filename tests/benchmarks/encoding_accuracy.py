"""What each encoding of updates costs in accuracy and saves in bytes: the recipe's fleet of people in motion.

``--seeds 0 --rounds 8 --encodings fp32,fp16,int8,topk:0.1,topk:0.01 --no-feedback``. Twenty-one people's phones, a
third of which train the whole model, a third half of it and a third a quarter; every arm starts from the same version
0. The figure is what int8 loses in the mean of the three widths.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coordinator.config import parse_encoding
from edge_sdk.protocol.messages import Encoding
from tests.benchmarks._measure import Figure, show
from tests.benchmarks._recipe_rounds import RECIPE, WIDTHS, Outcome, Problem, Rounds
from tests.benchmarks._recipe_sensors import motion

BAR = 1.0
_ENCODINGS = ("fp32", "fp16", "int8", "topk:0.1", "topk:0.01")


def run(arguments: Sequence[str] = ()) -> Figure:
    import torch

    torch.set_num_threads(1)
    options = _options(arguments)
    arms = {
        name: msgspec.structs.replace(parse_encoding(name), feedback=options.feedback) for name in options.encodings
    }
    by_arm: dict[str, list[Outcome]] = {name: [] for name in arms}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            problem = motion(Path(folder), seed, options.rounds, tied=False)
            for name, encoding in arms.items():
                by_arm[name].append(_play(problem, Path(folder), name, encoding))
    title = f"% right of full, half and quarter; MB up, of fp32's ({len(options.seeds)} seeds, {options.rounds} rounds)"
    show(title, [(name, _cells(outcomes, by_arm["fp32"])) for name, outcomes in by_arm.items()])
    losses = {name: _mean(by_arm["fp32"]) - _mean(outcomes) for name, outcomes in by_arm.items()}
    more = {name: round(loss, 2) for name, loss in losses.items() if name != "fp32"}
    return Figure("encoding_accuracy", losses["int8"], BAR, "points of accuracy", more)


def _play(problem: Problem, folder: Path, name: str, encoding: Encoding) -> Outcome:
    own = folder / name
    own.mkdir()
    started_s, rounds = time.monotonic(), Rounds(problem, RECIPE, own, encoding=encoding)
    for number in range(1, problem.rounds + 1):
        rounds.play(number)
    outcome = rounds.outcome()
    cells = " ".join(f"{outcome.test[width]:.2f}" for width in WIDTHS)
    taken_s = time.monotonic() - started_s
    print(f"  {name}: {cells}, {outcome.bytes_up / 1e6:.1f} MB, {taken_s:.0f} s", file=sys.stderr, flush=True)
    return outcome


def _cells(outcomes: Sequence[Outcome], of_fp32: Sequence[Outcome]) -> str:
    accuracy = " ".join(f"{statistics.mean(outcome.test[width] for outcome in outcomes):6.2f}" for width in WIDTHS)
    sent, plain = (statistics.mean(outcome.bytes_up for outcome in arm) for arm in (outcomes, of_fp32))
    return f"{accuracy}  {sent / 1e6:6.2f}  {sent / plain:6.1%}"


def _mean(outcomes: Sequence[Outcome]) -> float:
    return statistics.mean(outcome.test[width] for outcome in outcomes for width in WIDTHS)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks encoding_accuracy")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="comma-separated")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--encodings", type=_encodings, default=_ENCODINGS, help="comma-separated, besides fp32 and int8"
    )
    parser.add_argument("--no-feedback", dest="feedback", action="store_false", help="what is lost is lost")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _encodings(text: str) -> list[str]:
    return list(dict.fromkeys(("fp32", "int8", *text.split(","))))
