"""How good a version is, at any width and depth: accuracy and loss on held-out texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.models.inference_graph import inference_graph
from coordinator.models.running import Runner
from coordinator.models.templates import Templates
from coordinator.models.text_batches import TextBatch
from edge_sdk.elastic.slicing import Array, extract, slices_of
from edge_sdk.elastic.submodel import Submodel, full


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``accuracy`` in 0..1 and mean cross-entropy ``loss`` in nats, over ``samples`` texts."""

    accuracy: float
    loss: float
    samples: int


class Evaluator:
    """Evaluates submodels of one architecture on ``batches``, on ``threads`` threads of this machine.

    A session serves every width of the same layers and is kept, so after the first call only the arithmetic is left.
    """

    def __init__(self, templates: Templates, batches: Sequence[TextBatch], *, threads: int) -> None:
        self._templates = templates
        self._batches = tuple(batches)
        self._threads = threads
        self._runners: dict[tuple[int, ...], Runner] = {}

    def evaluate(self, submodel: Submodel, parameters: Mapping[str, Array]) -> Evaluation:
        """Cut ``submodel`` out of the full model's ``parameters`` and run it on all texts.

        Raises ``ConfigurationError`` where the submodel asks for more than the model has.
        """
        logits = self.logits(submodel, parameters)
        labels = np.concatenate([batch.labels for batch in self._batches])
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_likelihood = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return Evaluation(
            accuracy=float(np.mean(logits.argmax(axis=1) == labels)),
            loss=float(-np.mean(log_likelihood[np.arange(len(labels)), labels])),
            samples=len(labels),
        )

    def logits(self, submodel: Submodel, parameters: Mapping[str, Array]) -> Array:
        """The logits (texts, labels) of ``submodel``, in the order of the batches."""
        templates, shapes = self._templates, {name: values.shape for name, values in parameters.items()}
        part = extract(parameters, slices_of(submodel, templates.architecture, templates.family, shapes))
        runner = self._runner(submodel)
        outputs = [runner.run(batch.feeds(templates.architecture.labels), part) for batch in self._batches]
        return np.concatenate([output["logits"] for output in outputs])

    def max_logit_difference(self, parameters: Mapping[str, Array], others: Mapping[str, Array]) -> float:
        """The largest |Δlogit| between two versions of the full model: rounding alone where they are one function."""
        whole = full(self._templates.architecture)
        return float(np.abs(self.logits(whole, parameters) - self.logits(whole, others)).max())

    def _runner(self, submodel: Submodel) -> Runner:
        if submodel.layers not in self._runners:
            self._runners[submodel.layers] = Runner(inference_graph(self._templates, submodel), threads=self._threads)
        return self._runners[submodel.layers]
