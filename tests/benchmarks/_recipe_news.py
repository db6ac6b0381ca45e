"""The task of :mod:`tests.benchmarks.recipe` on texts, with a pretrained transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.config import Salience
from coordinator.demo.inputs import Deal, deal, packaged_model, packaged_texts
from coordinator.models.batches import batches_of
from coordinator.models.compilation import load_or_compile
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.head import with_fitted_head
from coordinator.models.salience import ranked, unit_salience
from coordinator.models.templates import Templates
from edge_sdk.data import TextExamples
from edge_sdk.data.batches import Batch, EncodedExamples, encode_examples
from tests.benchmarks._recipe_rounds import CACHE, DEFAULTS, Learner, Problem

_SHARES = (1.0, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25)
_CALIBRATION = 256


@dataclass(frozen=True, slots=True)
class News:
    """BBC News dealt to eight devices, and MiniLM with a fitted head, its units not yet ranked."""

    seed: int
    dealt: Deal
    foundation: Foundation
    templates: Templates
    calibration: Sequence[Batch]

    @property
    def pooled(self) -> TextExamples:
        """What all devices hold."""
        parts = self.dealt.devices.values()
        return TextExamples(
            tuple(text for part in parts for text in part.texts),
            tuple(label for part in parts for label in part.labels),
        )

    def problem(self, rounds: int) -> Problem:
        """The fleet, with version 0 as the foundation is."""
        third, test = len(self.dealt.test) // 3, self.dealt.test
        return Problem(
            self.foundation,
            self.templates,
            [
                Learner(share, encoded(self.foundation, texts))
                for share, texts in zip(_SHARES, self.dealt.devices.values(), strict=True)
            ],
            batches_of(self.foundation, test.take(range(third)), DEFAULTS.recipe),
            batches_of(self.foundation, test.take(range(third, len(test))), DEFAULTS.recipe),
            DEFAULTS.recipe,
            DEFAULTS.part,
            rounds,
            len(_SHARES),
            self.seed,
        )


def news_of(seed: int) -> News:
    """The articles as ``seed`` deals them."""
    names = [f"device-{place}" for place in range(len(_SHARES))]
    dealt = deal(packaged_texts(), names, seed=seed, test_share=0.25, calibration_size=_CALIBRATION)
    foundation = load_foundation(packaged_model(), sorted(set(dealt.test.labels)), seed)
    calibration = batches_of(foundation, dealt.calibration, DEFAULTS.recipe)
    foundation = with_fitted_head(foundation, calibration)
    return News(seed, dealt, foundation, load_or_compile(foundation, CACHE), calibration)


def news(_: Path, seed: int, rounds: int | None) -> Problem:
    """BBC News with MiniLM: embeddings frozen, head fitted and units ranked before round 0."""
    dealt = news_of(seed)
    problem = dealt.problem(rounds or 5)
    return replace(problem, foundation=ranked_by(DEFAULTS.salience, dealt, problem.foundation))


def ranked_by(salience: Salience, dealt: News, foundation: Foundation) -> Foundation:
    """The same model, its units in the order of what they weigh on the calibration texts."""
    weighed = unit_salience(salience, foundation, dealt.templates, dealt.calibration, threads=1)
    return ranked(foundation, weighed)


def encoded(foundation: Foundation, texts: TextExamples) -> EncodedExamples:
    """Texts as a device tokenises them."""
    return encode_examples(
        texts, foundation.labels, tokenizer_json=foundation.tokenizer_json, max_tokens=DEFAULTS.recipe.max_tokens
    )
