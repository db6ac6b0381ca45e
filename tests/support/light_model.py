"""A coordinator's model side without torch and onnx: it starts in a second, and all that decides bytes is real.

:mod:`coordinator.models.run` itself prepares, cuts, packs, aggregates and names versions of a small BERT of random
numbers. What only a framework can do is played: the graphs are a few bytes, and an evaluation is made up.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from coordinator.config import Salience, TaskConfig
from coordinator.models.foundation import Foundation
from coordinator.models.templates import Templates
from coordinator.planning.planner import TaskCosts
from edge_sdk.data import TextExamples, write_examples
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart
from edge_sdk.protocol.messages import Recipe
from tests.support import bert

ARCHITECTURE = Architecture(
    family="bert", layers=2, heads=4, head_size=8, ffn=64, hidden=32, vocabulary=40, positions=16, labels=2
)
_LABELS = ("negative", "positive")
_RECIPE = Recipe(learning_rate=1e-3, batch_size=4, epochs=1, max_tokens=8)
_RUN = "coordinator.models.run"
_MARK = "is_light"


def light_task(folder: Path, name: str = "task", **settings: object) -> TaskConfig:
    """A task of two rounds for three devices, all of which have to answer; ``settings`` replace its own."""
    examples = write_examples(folder / "examples.jsonl", TextExamples(("good", "bad"), ("positive", "negative")))
    own = {
        "name": name,
        "model_dir": str(folder),
        "calibration_file": str(examples),
        "test_file": str(examples),
        "rounds": 2,
        "min_devices": 3,
        "quorum": 3,
        "recipe": _RECIPE,
        "part": TrainablePart.NO_EMBEDDINGS,
        "salience": Salience.L2,
        "release": False,
    }
    return TaskConfig(**own | settings)


def training_bytes(submodel: Submodel) -> int:
    """What the planner thinks that training ``submodel`` takes."""
    costs = CostModel.of(ARCHITECTURE, {name: array.shape for name, array in _parameters(0).items()})
    return TaskCosts(costs, TrainablePart.NO_EMBEDDINGS, _RECIPE).training_bytes(submodel)


@contextmanager
def light_models() -> Iterator[ModuleType]:
    """:mod:`coordinator.models.run` with its frameworks played; as it was before once the context is left."""
    played = {f"coordinator.models.{name}": members for name, members in _PLAYED.items()}
    before = {name: sys.modules.pop(name, None) for name in (*played, "coordinator.models.salience", _RUN)}
    try:
        yield install()
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def install() -> ModuleType:
    """:func:`light_models` for good, in a process that does nothing else. Again, it changes nothing."""
    if hasattr(sys.modules.get(_RUN), _MARK):
        return sys.modules[_RUN]
    for name, members in _PLAYED.items():
        module = ModuleType(f"coordinator.models.{name}")
        module.__dict__.update(members)
        sys.modules[module.__name__] = module
    run = importlib.import_module(_RUN)
    run.__dict__.update({"load_foundation": _load_foundation, "batches_of": lambda *_: [], _MARK: True})
    return run


def _parameters(seed: int) -> dict[str, Array]:
    shapes = {"classifier.weight": (2, ARCHITECTURE.hidden), "classifier.bias": (2,)}
    rng = np.random.default_rng(seed)
    head = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return bert.weights(ARCHITECTURE, seed) | head


def _load_foundation(_: Path, labels: Sequence[str], seed: int, **__: object) -> Foundation:
    family = family_of(ARCHITECTURE.family)
    return Foundation(ARCHITECTURE, family, _parameters(seed), tuple(labels), b"{}", b"tokenizer")


@dataclass(frozen=True, slots=True)
class _Evaluation:
    accuracy: float
    loss: float
    samples: int


class _Evaluator:
    """Right about as often as the digest of the parameters says."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def evaluate(self, _: Submodel, parameters: Mapping[str, Array]) -> _Evaluation:
        return _Evaluation(_digest(parameters)[0] / 255, 1.0, 100)

    def evaluate_file(self, model: bytes) -> _Evaluation:
        return _Evaluation(model[0] / 255, 1.0, 100)

    def max_logit_difference(self, *_: object) -> float:
        return 0.0


class _Graph:
    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return b"graph"


def _digest(parameters: Mapping[str, Array]) -> bytes:
    whole = hashlib.sha256()
    for array in parameters.values():
        whole.update(array.tobytes())
    return whole.digest()


_PLAYED: Mapping[str, Mapping[str, object]] = {
    "activations": {"input_norms": None},
    "compilation": {"load_or_compile": lambda foundation, *_: Templates(foundation.architecture, b"", b"")},
    "evaluation": {"Evaluation": _Evaluation, "Evaluator": _Evaluator},
    "head": {"with_fitted_head": lambda foundation, _: foundation},
    "inference_graph": {
        "release_graph": lambda _, __, parameters, ___: _digest(parameters),
        "min_onnxruntime": lambda _: (20, "1.17"),
    },
    "running": {"Runner": None},
    "training_graph": {"training_graph": lambda *_: _Graph()},
}
