"""The tasks of :mod:`tests.benchmarks.recipe` on windows of a sensor, with a transformer from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from coordinator.demo.inputs import dirichlet_split
from coordinator.demo.motion import ACTIVITIES, Motion, packaged_motion
from coordinator.models.compilation import load_or_compile
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.fresh import FreshSizes, write_sensor_model
from coordinator.planning.nesting import Nesting
from edge_sdk.data import ArrayExamples
from edge_sdk.data.batches import Batch, EncodedExamples, encode_examples
from edge_sdk.elastic.submodel import ModelTask, TrainablePart
from tests.benchmarks._gestures import GestureLanguage
from tests.benchmarks._recipe_rounds import CACHE, DEFAULTS, Learner, Problem

FROM_SCRATCH = msgspec.structs.replace(DEFAULTS.recipe, learning_rate=2e-3, distillation=0.5)
"""At first a model from scratch has little to teach: where half of the targets are labels, motion gains 0.2 to 0.4."""
NESTING = Nesting(shares=(0.5, 0.25))
"""A half that only a third of the devices train is worse than the quarter that all do."""
Series = NDArray[np.float32]
Indices = NDArray[np.int64]

_PEOPLE, _TEST_PEOPLE, _CHOOSING_PEOPLE = 30, 6, 3
_STAIRS = (ACTIVITIES.index("upstairs"), ACTIVITIES.index("downstairs"))
_STAIRS_LEFT = 10  # of the windows on stairs, an able device keeps one in so many where class is tied to data
_THIRDS = (1.0, 0.5, 0.25)


def motion(folder: Path, seed: int, rounds: int | None, *, tied: bool) -> Problem:
    """HAPT: a person is a device. With ``tied``, the able ones hardly ever take the stairs."""
    people, random = packaged_motion(), np.random.default_rng(seed)
    known = _PEOPLE - _TEST_PEOPLE
    order = random.permutation(np.arange(1, known + 1))
    choosing, training = order[:_CHOOSING_PEOPLE], order[_CHOOSING_PEOPLE:]
    shares = [_THIRDS[place % len(_THIRDS)] for place in range(len(training))]
    parts = [np.flatnonzero(people.people == person) for person in training]
    if tied:
        parts = [
            _without_stairs(part, people.activities) if share == 1 else part
            for part, share in zip(parts, shares, strict=True)
        ]
    foundation = sensor_foundation(folder, people.series[np.concatenate(parts)], ACTIVITIES, FreshSizes(layers=2), seed)
    test = people.people > known
    return Problem(
        foundation,
        load_or_compile(foundation, CACHE),
        [
            Learner(share, _windows(foundation, people.series[part], people.activities[part]))
            for share, part in zip(shares, parts, strict=True)
        ],
        _batches(foundation, _of_people(people, choosing)),
        _batches(foundation, (people.series[test], people.activities[test])),
        FROM_SCRATCH,
        TrainablePart.ALL,
        rounds or 10,
        len(training),
        seed,
        NESTING,
    )


def gestures(folder: Path, seed: int, rounds: int | None) -> Problem:
    """The capacity-bound task: twelve devices, whose windows a Dirichlet by meaning deals out."""
    random = np.random.default_rng(seed)
    language = GestureLanguage(random, gestures=12, meanings=6)
    labels = tuple(map(str, range(language.meanings)))
    series, meanings = language.windows(random, 5760)
    foundation = sensor_foundation(folder, series, labels, FreshSizes(layers=2, hidden=32, ffn=128), seed)
    parts = dirichlet_split(meanings, 12, random, 0.5)
    return Problem(
        foundation,
        load_or_compile(foundation, CACHE),
        [
            Learner(_THIRDS[place % len(_THIRDS)], _windows(foundation, series[part], meanings[part]))
            for place, part in enumerate(parts)
        ],
        _batches(foundation, language.windows(random, 1000)),
        _batches(foundation, language.windows(random, 2000)),
        msgspec.structs.replace(FROM_SCRATCH, learning_rate=3e-3, batch_size=32, max_steps=None),
        TrainablePart.ALL,
        rounds or 16,
        12,
        seed,
        NESTING,
    )


def sensor_foundation(folder: Path, series: Series, labels: Sequence[str], sizes: FreshSizes, seed: int) -> Foundation:
    """A sensor transformer from scratch; a window is 128 steps of 6 channels, cut into 16 patches."""
    write_sensor_model(
        folder,
        sizes,
        labels=len(labels),
        steps=series.shape[1],
        patch_steps=8,
        mean=series.mean(axis=(0, 1)).tolist(),
        scale=series.std(axis=(0, 1)).tolist(),
        seed=seed,
    )
    return load_foundation(folder, labels, seed, task=ModelTask.TIME_SERIES_CLASSIFICATION)


def _without_stairs(part: Indices, activities: Indices) -> Indices:
    """All windows but those on stairs, of which one in ``_STAIRS_LEFT`` is left."""
    stairs = np.isin(activities[part], _STAIRS)
    return np.sort(np.concatenate([part[~stairs], part[stairs][::_STAIRS_LEFT]]))


def _of_people(people: Motion, chosen: Indices) -> tuple[Series, Indices]:
    mask = np.isin(people.people, chosen)
    return people.series[mask], people.activities[mask]


def _windows(foundation: Foundation, series: Series, classes: Indices) -> EncodedExamples:
    labels = foundation.labels
    return encode_examples(ArrayExamples(series, tuple(labels[index] for index in classes)), labels)


def _batches(foundation: Foundation, windows: tuple[Series, Indices]) -> list[Batch]:
    return list(_windows(foundation, *windows).by_length(256))
