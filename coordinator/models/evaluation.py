"""Evaluates a version at any width and depth: accuracy and loss on the coordinator's test examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.models.batches import feeds
from coordinator.models.inference_graph import inference_graph
from coordinator.models.merging import graph_parameters
from coordinator.models.running import Runner
from coordinator.models.templates import Templates
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import ModelTask, Submodel, full
from edge_sdk.protocol.graphs import LOGITS


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``accuracy`` in 0..1 and mean cross-entropy ``loss`` in nats, over ``samples`` targets.

    A target is an example's label, a word's tag, or the token that follows.
    """

    accuracy: float
    loss: float
    samples: int


class Evaluator:
    """Evaluates submodels of one architecture on ``batches``, on ``threads`` threads of this machine.

    A session serves every width of the same layers and is kept, so after the first call only the arithmetic is left.
    """

    def __init__(self, templates: Templates, batches: Sequence[Batch], *, threads: int) -> None:
        self._templates = templates
        self._task = templates.architecture.task
        self._batches = tuple(batches)
        self._threads = threads
        self._runners: dict[tuple[int, ...], Runner] = {}

    def evaluate(self, submodel: Submodel, parameters: Mapping[str, Array]) -> Evaluation:
        """Cut ``submodel`` out of the full model's ``parameters`` and run it on all examples.

        Raises ``ConfigurationError`` where the submodel asks for more than the model has.
        """
        return self._scored(self.logits(submodel, parameters))

    def evaluate_file(self, model: bytes) -> Evaluation:
        """Evaluate the very file that is released on all examples."""
        runner, architecture = Runner(model, threads=self._threads), self._templates.architecture
        return self._scored(runner.run(feeds(batch, architecture))[LOGITS] for batch in self._batches)

    def max_logit_difference(self, parameters: Mapping[str, Array], others: Mapping[str, Array]) -> float:
        """The largest |Δlogit| between two versions of the full model; only rounding if they are the same function."""
        whole = full(self._templates.architecture)
        pairs = zip(self.logits(whole, parameters), self.logits(whole, others), strict=True)
        return max(float(np.abs(one - other).max()) for one, other in pairs)

    def logits(self, submodel: Submodel, parameters: Mapping[str, Array]) -> Iterator[Array]:
        """The logits of ``submodel``, cut out of the full model's ``parameters``, for each batch."""
        part = graph_parameters(self._templates, submodel, parameters)
        runner, architecture = self._runner(submodel), self._templates.architecture
        return (runner.run(feeds(batch, architecture), part)[LOGITS] for batch in self._batches)

    def _scored(self, answers: Iterable[Array]) -> Evaluation:
        right = loss = 0.0
        for batch, logits in zip(self._batches, answers, strict=True):
            found, nats = _scores(logits, batch.targets, self._task)
            right, loss = right + found, loss + nats
        samples = sum(batch.count(self._task) for batch in self._batches)
        return Evaluation(right / samples, loss / samples, samples)

    def _runner(self, submodel: Submodel) -> Runner:
        if submodel.layers not in self._runners:
            self._runners[submodel.layers] = Runner(inference_graph(self._templates, submodel), threads=self._threads)
        return self._runners[submodel.layers]


def _scores(logits: Array, targets: NDArray[Any], task: ModelTask) -> tuple[float, float]:
    """How many targets the likeliest class hits, and the sum of their cross-entropies in nats."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_likelihood = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    if task.generates:
        counts, indices = targets >= 0, np.maximum(targets, 0)
    else:
        counts, indices = targets.sum(axis=-1) > 0, targets.argmax(axis=-1)
    likelihoods = np.take_along_axis(log_likelihood, indices[..., None], axis=-1)[..., 0]
    return float((logits.argmax(axis=-1) == indices)[counts].sum()), float(-likelihoods[counts].sum(dtype=np.float64))
