"""One way to use a fleet, from version 0 on: the device's runtime and the coordinator's aggregation, in one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from coordinator.aggregation.coverage import UpdateSource
from coordinator.config import CoordinatorConfig, TaskConfig
from coordinator.delivery.choice import Judged, best_of
from coordinator.models.evaluation import Evaluator
from coordinator.models.foundation import Foundation
from coordinator.models.templates import Templates
from coordinator.models.training_graph import training_graph
from coordinator.models.versions import split_part
from coordinator.planning.nesting import Nesting, draw, nested_widths
from edge_sdk.data.batches import Batch, EncodedExamples
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.slicing import Array, Slices, extract, shapes_of, slices_of
from edge_sdk.elastic.submodel import Submodel, TrainablePart, uniform
from edge_sdk.protocol.messages import FP32, Encoding, Recipe
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.training.calibration import logit_offset
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.onnx_runtime import OnnxRuntime
from edge_sdk.training.runtime import train
from edge_sdk.training.torch_runtime import TorchRuntime
from tests.benchmarks._recipe_authors import authors_rule, permuted_by_l1
from tests.support.plain_mean import aggregate

CACHE = CoordinatorConfig(state_dir=Path(), broker="").template_cache
DEFAULTS = TaskConfig(name="recipe", model_dir="", calibration_file="", test_file="")
_NO_LIMIT_BYTES = 1 << 40
_NOTHING_NESTED = Nesting(shares=())
WIDTHS = {"full": 1.0, "half": 0.5, "quarter": 0.25}
RUNTIMES = {Runtime.ONNX: OnnxRuntime, Runtime.TORCH: TorchRuntime}
Parameters = Mapping[str, Array]
Aggregation = Callable[[Parameters, Sequence[UpdateSource]], dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Learner:
    """A device: the largest share of the model that it can train, and what it trains on."""

    share: float
    examples: EncodedExamples


@dataclass(frozen=True, slots=True)
class Problem:
    """A fleet and its task. ``foundation`` is version 0; ``choosing`` decides which size is deployed, ``test`` judges.

    In each of ``rounds`` rounds ``cohort`` learners take part, or all who can.
    """

    foundation: Foundation
    templates: Templates
    learners: Sequence[Learner]
    choosing: Sequence[Batch]
    test: Sequence[Batch]
    recipe: Recipe
    part: TrainablePart
    rounds: int
    cohort: int
    seed: int
    nesting: Nesting = DEFAULTS.nesting

    def submodel(self, share: float) -> Submodel:
        """The prefix of ``share`` of the heads and neurons of every layer."""
        architecture = self.foundation.architecture
        return uniform(architecture, max(1, round(share * architecture.heads)))

    def slices(self, submodel: Submodel) -> Slices:
        """All of its parameters."""
        foundation = self.foundation
        shapes = {name: values.shape for name, values in foundation.parameters.items()}
        return slices_of(submodel, foundation.architecture, foundation.family, shapes)


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to use the fleet: what share a learner trains by what it could (0: it stays out), and the server's rule."""

    name: str
    share: Callable[[float], float]
    aggregation: Aggregation
    is_nested: bool = False
    calibrated: bool = False
    before_round: Callable[[Problem, Parameters], Parameters] = lambda _, parameters: parameters


_plain_mean = partial(aggregate, floor=0.0)
RECIPE = Arm(
    "default recipe",
    lambda share: share,
    partial(aggregate, floor=DEFAULTS.aggregation.floor),
    is_nested=True,
    calibrated=DEFAULTS.recipe.calibrate_logits,
)
EVERYONE_FULL = Arm("A everyone full", lambda _: 1.0, _plain_mean)
ABLE = Arm("B able only", lambda share: float(share == 1), _plain_mean)
EVERYONE_QUARTER = Arm("C everyone a quarter", lambda _: 0.25, _plain_mean)
AUTHORS = Arm("authors' rule", lambda share: share, authors_rule, before_round=permuted_by_l1)
ARMS = (RECIPE, EVERYONE_FULL, ABLE, EVERYONE_QUARTER, AUTHORS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """By width: how it does on the examples that choose, and percent right of the test's; bytes of all updates."""

    choosing: Mapping[str, Judged]
    test: Mapping[str, float]
    bytes_up: int

    @property
    def deployed(self) -> float:
        """Percent right of the size that the coordinator would release to a device that can run them all."""
        best = best_of([*self.choosing.values()])
        return next(self.test[width] for width, judged in self.choosing.items() if judged.submodel == best)


class Rounds:
    """``problem`` played by ``arm`` on devices that train on ``runtime``; files lie in ``folder``."""

    def __init__(
        self,
        problem: Problem,
        arm: Arm,
        folder: Path,
        runtime: Runtime = Runtime.ONNX,
        encoding: Encoding = FP32,
    ) -> None:
        self._problem, self._arm, self._folder, self._runtime = problem, arm, folder, runtime
        self._encoding = encoding
        self.parameters: Parameters = problem.foundation.parameters
        self._bytes_up = 0
        self._choosing = Evaluator(problem.templates, problem.choosing, threads=1)
        self._test = Evaluator(problem.templates, problem.test, threads=1)

    def play(self, number: int) -> None:
        """One round: cut, train, aggregate."""
        problem = self._problem
        self.parameters = self._arm.before_round(problem, self.parameters)
        updates = [self._train(index, number) for index in self._cohort(number)]
        self._bytes_up += sum(update.path.stat().st_size for update in updates)
        trained, frozen = split_part(dict(self.parameters), problem.foundation.family, problem.part)
        self.parameters = {**self._arm.aggregation(trained, updates), **frozen}

    def outcome(self) -> Outcome:
        """How the version is now, at every width."""
        choosing, test = self.judged(self._choosing), self.judged(self._test)
        return Outcome(choosing, {width: 100 * judged.accuracy for width, judged in test.items()}, self._bytes_up)

    def judged(self, evaluator: Evaluator | None = None) -> dict[str, Judged]:
        """Every width, on the examples that choose where nothing else is said."""
        evaluator = evaluator or self._choosing
        return {width: self._judge(self._problem.submodel(share), evaluator) for width, share in WIDTHS.items()}

    def _judge(self, submodel: Submodel, evaluator: Evaluator) -> Judged:
        found = evaluator.evaluate(submodel, self.parameters)
        shapes = shapes_of(self._problem.slices(submodel)).values()
        return Judged(submodel, sum(map(math.prod, shapes)), found.accuracy, found.samples)

    def _cohort(self, number: int) -> list[int]:
        """The learners of a round, the same for every arm in which all can take part."""
        learners = enumerate(self._problem.learners)
        able = [index for index, learner in learners if self._arm.share(learner.share)]
        random = np.random.default_rng((self._problem.seed, number))
        return sorted(random.choice(able, min(self._problem.cohort, len(able)), replace=False).tolist())

    def _train(self, index: int, number: int) -> UpdateSource:
        problem, learner = self._problem, self._problem.learners[index]
        submodel = problem.submodel(self._arm.share(learner.share))
        job = self._job(submodel, index, number)
        offset = logit_offset(learner.examples.label_counts)
        trainer = RUNTIMES[self._runtime](job, offset if self._arm.calibrated else offset * 0)
        train(trainer, learner.examples, job, lambda _: None)
        family = problem.foundation.family
        slices = {
            name: region for name, region in problem.slices(submodel).items() if family.is_trainable(name, problem.part)
        }
        return UpdateSource(f"learner-{index:03}", len(learner.examples), slices, Path(job.update), self._encoding)

    def _job(self, submodel: Submodel, index: int, number: int) -> TrainingJob:
        problem, architecture = self._problem, self._problem.foundation.architecture
        nesting = problem.nesting if self._arm.is_nested else _NOTHING_NESTED
        seed, residual = (problem.seed * 1_000 + index) * 1_000 + number, self._folder / f"residual-{index}"
        return TrainingJob(
            **self._files(submodel, number),
            examples="",
            runtime=self._runtime,
            update=str(self._folder / f"update-{index}"),
            labels=problem.foundation.labels,
            recipe=msgspec.structs.replace(problem.recipe, calibrate_logits=self._arm.calibrated),
            seed=seed,
            threads=1,
            memory_limit_bytes=_NO_LIMIT_BYTES,
            architecture=architecture,
            submodel=submodel,
            nested=nested_widths(submodel, architecture, nesting, draw(problem.seed, number)),
            encoding=self._encoding,
            rounding_seed=seed,
            residual=str(residual) if residual.exists() else "",
            new_residual=str(residual),
        )

    def _files(self, submodel: Submodel, number: int) -> dict[str, str]:
        """What a device is given: weights of this round, and once what stays the same in all rounds."""
        problem, folder = self._problem, self._folder / f"{max(submodel.heads)}-heads"
        folder.mkdir(exist_ok=True)
        paths = {name: folder / name for name in ("frozen", "graph", "config")}
        paths["weights"] = folder / f"weights-{number}"
        if not paths["weights"].exists():
            for old in folder.glob("weights-*"):
                old.unlink()
            cut = extract(self.parameters, problem.slices(submodel))
            trained, frozen = split_part(cut, problem.foundation.family, problem.part)
            _write(paths["weights"], trained)
            if not paths["graph"].exists():
                _write(paths["frozen"], frozen)
                graph = training_graph(problem.templates, submodel, problem.part)
                paths["graph"].write_bytes(graph.SerializeToString())
                paths["config"].write_bytes(problem.foundation.config_json)
        return {name: str(path) for name, path in paths.items()}


def _write(path: Path, tensors: Parameters) -> None:
    with path.open("wb") as file:
        write_tensors(file, tensors)
