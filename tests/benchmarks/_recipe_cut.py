"""A pretrained model, trained centrally, then cut without training: what first-order salience is worth beside L1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from coordinator.config import Salience
from coordinator.models.evaluation import Evaluator
from tests.benchmarks._recipe_news import News, encoded, news_of, ranked_by
from tests.benchmarks._recipe_rounds import Arm, Learner, Problem, Rounds
from tests.support.plain_mean import aggregate

Cut = Mapping[str, Mapping[str, float]]
_SHARES = {"full": 1.0, "three quarters": 0.75, "half": 0.5, "quarter": 0.25}
_CENTRAL = Arm("central", lambda _: 1.0, partial(aggregate, floor=0.0))


def play_cut(folder: Path, seed: int) -> Cut:
    """Percent of the test right by salience and width; one device with everybody's articles takes part in one round."""
    news = news_of(seed)
    trained = _trained(news.problem(1), news, folder)
    found = {}
    for salience in (Salience.TAYLOR, Salience.L1, Salience.RANDOM):
        order = ranked_by(salience, news, trained.foundation)
        evaluator = Evaluator(trained.templates, trained.test, threads=1)
        found[salience.value] = {
            width: 100 * evaluator.evaluate(trained.submodel(share), order.parameters).accuracy
            for width, share in _SHARES.items()
        }
    return found


def _trained(problem: Problem, news: News, folder: Path) -> Problem:
    """The problem whose version 0 is the centrally trained model."""
    central = replace(
        problem,
        learners=[Learner(1.0, encoded(problem.foundation, news.pooled))],
        cohort=1,
        recipe=msgspec.structs.replace(problem.recipe, max_steps=None),
    )
    rounds = Rounds(central, _CENTRAL, folder)
    rounds.play(1)
    return replace(problem, foundation=replace(problem.foundation, parameters=dict(rounds.parameters)))
