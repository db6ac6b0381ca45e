"""The salience of a model's heads and neurons, and the accuracy of its submodels before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.config import Salience
from coordinator.models.batches import batches_of, labels_of
from coordinator.models.compilation import load_or_compile
from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.head import with_fitted_head
from coordinator.models.salience import UnitSalience, ranked, unit_salience
from edge_sdk.data import Examples, read_examples
from edge_sdk.data.examples import task_of
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.submodel import Architecture, full, uniform
from edge_sdk.errors import DataFormatError
from edge_sdk.protocol.messages import Recipe

_MIN_EXAMPLES = 8


@dataclass(frozen=True, slots=True)
class Point:
    """A submodel cut without any training: its width, its share of the full model's parameters, its accuracy."""

    heads: int
    share: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """The inspection of one model: by metric, the salience of its units, and accuracy from the narrowest width on."""

    architecture: Architecture
    salience: Mapping[Salience, UnitSalience]
    curves: Mapping[Salience, tuple[Point, ...]]


def inspect_model(
    model_dir: Path,
    data: Path,
    metrics: Sequence[Salience],
    cache: Path,
    recipe: Recipe,
    *,
    calibration: int,
    test: int,
    seed: int,
    threads: int,
    say: Callable[[str], None],
) -> Inspection:
    """Rank by each of ``metrics`` on ``calibration`` examples, and evaluate every width on ``test`` other examples.

    Where there are fewer examples, both get their share of them. Raises the named errors of a model folder or a data
    file that cannot be used.
    """
    few, rest = _parts(read_examples(data), data, calibration, test, seed)
    say(f"ranking on {len(few)} examples, judging on {len(rest)} others")
    foundation = load_foundation(model_dir, labels_of(few, rest), seed, task=task_of(rest))
    batches = batches_of(foundation, few, recipe)
    foundation = with_fitted_head(foundation, batches)
    templates = load_or_compile(foundation, cache, say)
    evaluator = Evaluator(templates, batches_of(foundation, rest, recipe), threads=threads)
    found, curves = dict[Salience, UnitSalience](), dict[Salience, tuple[Point, ...]]()
    for metric in metrics:
        say(f"{metric.value}: {foundation.architecture.heads} widths")
        found[metric] = unit_salience(metric, foundation, templates, batches, threads=threads, seed=seed)
        curves[metric] = _curve(foundation, found[metric], evaluator)
    return Inspection(foundation.architecture, found, curves)


def _curve(foundation: Foundation, salience: UnitSalience, evaluator: Evaluator) -> tuple[Point, ...]:
    architecture, parameters = foundation.architecture, ranked(foundation, salience).parameters
    costs = CostModel.of(architecture, {name: values.shape for name, values in parameters.items()})
    whole = costs.parameter_count(full(architecture))

    def point(heads: int) -> Point:
        submodel = uniform(architecture, heads)
        share = costs.parameter_count(submodel) / whole
        return Point(heads, share, evaluator.evaluate(submodel, parameters).accuracy)

    return tuple(map(point, range(1, architecture.heads + 1)))


def _parts(examples: Examples, path: Path, calibration: int, test: int, seed: int) -> tuple[Examples, Examples]:
    if len(examples) < _MIN_EXAMPLES:
        raise DataFormatError(f"{path} has {len(examples)} examples; at least {_MIN_EXAMPLES} are needed")
    wanted = min(len(examples), calibration + test)
    few = max(1, wanted * calibration // (calibration + test))
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    return examples.take(order[:few]), examples.take(order[few:wanted])
