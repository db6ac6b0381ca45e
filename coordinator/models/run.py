"""A prepared task: its permuted model, graphs and costs, and the blobs of its rounds and releases.

Everything here is a function of the task's configuration and of blobs, so a coordinator that restarts gets the same run
back: version 0 is stored once, and aggregation depends on the set of accepted updates alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from coordinator.aggregation.coverage import UpdateSource
from coordinator.aggregation.low_rank import Folding, adapted_modules
from coordinator.aggregation.rule import AdapterMerge, aggregate
from coordinator.config import TaskConfig
from coordinator.models.batches import batches_of, labels_of
from coordinator.models.compilation import load_or_compile
from coordinator.models.evaluation import Evaluation, Evaluator
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.head import with_fitted_head
from coordinator.models.inference_graph import min_onnxruntime, release_graph
from coordinator.models.salience import ranked, unit_salience
from coordinator.models.templates import Templates
from coordinator.models.training_graph import training_graph
from coordinator.models.versions import (
    ModelVersion,
    Ordering,
    load_version,
    put_bytes,
    put_tensors,
    save_version,
    split_part,
)
from coordinator.planning.nesting import draw, nested_widths
from edge_sdk.data import Examples, read_examples
from edge_sdk.data.batches import Batch
from edge_sdk.data.examples import task_of
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.slicing import Array, Shapes, Slices, extract, slices_of
from edge_sdk.elastic.submodel import Submodel, TrainablePart, uniform
from edge_sdk.errors import ConfigurationError, ModelFormatError
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.protocol.releases import Precision
from edge_sdk.transport.blob_folder import BlobFolder

MAX_LOGIT_DIFFERENCE = 1e-4
_CHECKED_BATCHES = 2  # a wrong permutation shows in any example
_SHARE_NAMES = {1.0: "full", 0.75: "three-quarters", 0.5: "half", 0.25: "quarter"}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WidthResult:
    """The evaluation of one width of a global model on the coordinator's test examples."""

    width: str
    parameters: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Exported:
    """A model file, its operator set, the oldest onnxruntime that can run it, and its ``evaluation``."""

    manifest: tuple[BlobEntry, ...]
    opset: int
    onnxruntime: str
    evaluation: Evaluation


class Run:
    """The model side of one task: graphs, costs and test examples. Used by one thread at a time."""

    def __init__(
        self,
        config: TaskConfig,
        foundation: Foundation,
        templates: Templates,
        blobs: BlobFolder,
        evaluator: Evaluator,
    ) -> None:
        self.config = config
        self.foundation = foundation
        self.templates = templates
        self._blobs = blobs
        self._evaluator = evaluator
        self._manifests: dict[tuple[str, Submodel, Runtime], tuple[BlobEntry, ...]] = {}
        self._judged_version = ""
        self._judgements: dict[Submodel, Evaluation] = {}
        self._exports: dict[tuple[str, Submodel, Precision], Exported] = {}

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes of the full model's parameters."""
        return {name: array.shape for name, array in self.foundation.parameters.items()}

    @cached_property
    def runtimes(self) -> tuple[Runtime, ...]:
        """The runtimes that can train this task: only torch if its adapters have no graph."""
        return tuple(Runtime) if self.foundation.architecture.has_graph else (Runtime.TORCH,)

    @cached_property
    def widths(self) -> Mapping[str, Submodel]:
        """The submodels that are evaluated after every round, by name."""
        architecture = self.foundation.architecture
        return {
            _SHARE_NAMES.get(share, f"{share:.0%}"): uniform(architecture, max(1, int(architecture.heads * share)))
            for share in self.config.evaluated_shares
        }

    @cached_property
    def costs(self) -> CostModel:
        """The cost model of this task's submodels: their memory, arithmetic and traffic."""
        return CostModel.of(self.foundation.architecture, self.shapes)

    def nested(self, submodel: Submodel, round_number: int) -> tuple[Submodel, ...]:
        """The narrower widths that ``submodel`` also trains in each step of a round."""
        drawn = draw(self.config.seed, round_number) if self.config.nesting.is_random else 1.0
        return nested_widths(submodel, self.foundation.architecture, self.config.nesting, drawn)

    def slices(self, submodel: Submodel) -> Slices:
        """All parameters of a submodel."""
        return slices_of(submodel, self.foundation.architecture, self.foundation.family, self.shapes)

    def parameters(self, submodel: Submodel) -> int:
        """The number of parameters of a submodel."""
        return self.costs.parameter_count(submodel)

    def trained_slices(self, submodel: Submodel) -> Slices:
        """The slices of the parameters that a device trains, which its update has to consist of."""
        family, part = self.foundation.family, self.config.part
        return {name: axes for name, axes in self.slices(submodel).items() if family.is_trainable(name, part)}

    def manifest(
        self, version: ModelVersion, submodel: Submodel, runtime: Runtime = Runtime.ONNX
    ) -> tuple[BlobEntry, ...]:
        """The blobs that a device needs to train ``submodel`` from ``version``; made once for equal submodels."""
        key = (version.digest, submodel, runtime)
        if not all(self._blobs.has(entry.digest) for entry in self._manifests.get(key, ())):
            del self._manifests[key]  # a round that changed nothing, or was abandoned, left the version as it was
        if key not in self._manifests:
            self._manifests = {old: made for old, made in self._manifests.items() if old[0] == version.digest}
            self._manifests[key] = self._pack(version, submodel, runtime)
        return self._manifests[key]

    def packed(self, version: ModelVersion) -> set[str]:
        """The digests of all that :meth:`manifest` has made of a version."""
        made = (entries for (digest, *_), entries in self._manifests.items() if digest == version.digest)
        return {entry.digest for entries in made for entry in entries}

    def aggregate(self, version: ModelVersion, number: int, updates: Sequence[UpdateSource]) -> ModelVersion:
        """The version after round ``number``: a pure function of ``version`` and the set of ``updates``."""
        family, part = self.foundation.family, self.config.part
        trained, frozen = split_part(version.parameters, family, part)
        folding = self._folding(number)
        if folding is not None:
            trained |= {name: frozen[name] for name in map("{}.weight".format, adapted_modules(trained))}
        made = aggregate(trained, updates, self.config.aggregation, version.moments, folding)
        parameters = frozen | made.parameters
        return save_version(self._blobs, number, parameters, version.ordering, family, part, made.moments)

    def evaluate(self, version: ModelVersion) -> list[WidthResult]:
        """Accuracy and loss of the full model and of the submodels cut from it."""
        return [
            WidthResult(width, self.parameters(submodel), self.judge(version, submodel))
            for width, submodel in self.widths.items()
        ]

    def judge(self, version: ModelVersion, submodel: Submodel) -> Evaluation:
        """The evaluation of one submodel of a version, cached until another version is evaluated."""
        if self._judged_version != version.digest:
            self._judged_version, self._judgements = version.digest, {}
        if submodel not in self._judgements:
            self._judgements[submodel] = self._evaluator.evaluate(submodel, version.parameters)
        return self._judgements[submodel]

    def export(self, version: ModelVersion, submodel: Submodel, precision: Precision) -> Exported:
        """The model file of ``submodel`` for inference with its tokenizer, and the evaluation of that very file."""
        key = (version.digest, submodel, precision)
        if key not in self._exports:
            graph = release_graph(self.templates, submodel, version.parameters, precision)
            entries = (put_bytes(self._blobs, Part.INFERENCE_MODEL, graph), *self.tokenizer)
            self._exports[key] = Exported(entries, *min_onnxruntime(graph), self._evaluator.evaluate_file(graph))
        return self._exports[key]

    @cached_property
    def tokenizer(self) -> tuple[BlobEntry, ...]:
        """The blob of the tokenizer that devices use too; empty if the examples are not texts."""
        tokenizer = self.foundation.tokenizer_json
        return (put_bytes(self._blobs, Part.TOKENIZER, tokenizer),) if tokenizer else ()

    def _folding(self, number: int) -> Folding | None:
        """How adapters are folded into what they adapt after round ``number``, where the task stacks them."""
        adapters = self.foundation.architecture.adapters
        if adapters is None or self.config.aggregation.adapters is not AdapterMerge.STACK:
            return None
        return Folding(adapters.scale, self.foundation.family.is_transposed, seed=self.config.seed + number)

    def _pack(self, version: ModelVersion, submodel: Submodel, runtime: Runtime) -> tuple[BlobEntry, ...]:
        cut = extract(version.parameters, self.slices(submodel))
        trained, frozen = split_part(cut, self.foundation.family, self.config.part)
        return (
            put_tensors(self._blobs, Part.WEIGHTS, trained),
            put_tensors(self._blobs, Part.FROZEN, frozen),
            self._program(submodel, runtime),
            *self.tokenizer,
        )

    def _program(self, submodel: Submodel, runtime: Runtime) -> BlobEntry:
        """What ``runtime`` makes the model of."""
        if runtime is Runtime.TORCH:
            return put_bytes(self._blobs, Part.CONFIG, self.foundation.config_json)
        graph = training_graph(self.templates, submodel, self.config.part)
        return put_bytes(self._blobs, Part.TRAINING_GRAPH, graph.SerializeToString())


def foundation_of(config: TaskConfig, calibration: Examples, test: Examples) -> Foundation:
    """The task's model for its labels, or those that occur, with a random head; raises what loading a model raises.

    Raises ``ConfigurationError`` where there is nothing to train.
    """
    labels, part = config.data.labels or labels_of(calibration, test), config.part
    foundation = load_foundation(
        Path(config.model_dir), labels, config.seed, task=task_of(test), adapters=config.adapters
    )
    if not any(foundation.family.is_trainable(name, part) for name in foundation.parameters):
        raise ConfigurationError(
            f"{config.model_dir} has no parameters that belong to {part.value}: its head is its embeddings; "
            f"train {TrainablePart.NO_EMBEDDINGS.value} or {TrainablePart.ADAPTERS.value}"
        )
    return foundation


def prepare(
    config: TaskConfig,
    blobs: BlobFolder,
    cache: Path,
    *,
    threads: int,
    say: Say,
    known: tuple[int, tuple[BlobEntry, ...]] | None = None,
) -> tuple[Run, ModelVersion]:
    """Load, compile, rank, permute and check; returns the run and its newest version. The first time takes about 20 s.

    The run's ``config`` is what the model lets ``config`` be: its texts are no longer than the model's positions.
    ``known`` is the number and the blobs of the version that an earlier start got to; without it version 0 is made.
    Raises the named errors of a model folder or data file that cannot be used, and ``ModelFormatError`` where the
    permutation changes the model's answers, or the model is another than the one that ``known`` came of.
    """
    calibration, test = read_examples(Path(config.calibration_file)), read_examples(Path(config.test_file))
    say(f"loading {config.model_dir}")
    foundation = foundation_of(config, calibration, test)
    config = _within_positions(config, foundation, say)
    version = None if known is None else _known_version(config, foundation, blobs, *known)
    batches = batches_of(foundation, calibration, config.recipe)
    foundation = with_fitted_head(foundation, batches) if known is None else foundation
    templates = load_or_compile(foundation, cache, say)
    evaluator = Evaluator(templates, batches_of(foundation, test, config.recipe), threads=threads)
    run = Run(config, foundation, templates, blobs, evaluator)
    if version is not None:
        return run, version
    say(f"ranking heads and neurons by {config.salience.value} salience")
    parameters, ordering = _permuted(run, batches, threads)
    return run, save_version(blobs, 0, parameters, ordering, foundation.family, config.part)


def _within_positions(config: TaskConfig, foundation: Foundation, say: Say) -> TaskConfig:
    """Cut texts where the model's positions end: one more token would end training and inference on a device."""
    positions = foundation.architecture.positions
    if not foundation.tokenizer_json or config.recipe.max_tokens <= positions:
        return config
    say(f"cutting texts at {positions} tokens, the model's positions, not at {config.recipe.max_tokens}")
    return msgspec.structs.replace(config, recipe=msgspec.structs.replace(config.recipe, max_tokens=positions))


def _known_version(
    config: TaskConfig, foundation: Foundation, blobs: BlobFolder, number: int, entries: tuple[BlobEntry, ...]
) -> ModelVersion:
    """What an earlier start got to, which has to fit what the task's own files still say."""
    version = load_version(blobs, number, entries)
    for name, values in foundation.parameters.items():
        found = version.parameters.get(name)
        if found is None or found.shape != values.shape:
            shape = "none" if found is None else f"{found.shape} in version {number}"
            raise ModelFormatError(
                f"{config.model_dir}, with the classes of the task's examples, is not what the task began with: "
                f"{name} is {values.shape}, and {shape}; restore these files, or queue another task"
            )
    return version


def _permuted(run: Run, calibration: Sequence[Batch], threads: int) -> tuple[dict[str, Array], Ordering]:
    """The foundation's parameters, most salient units first, after checking that the function is the same."""
    foundation, config = run.foundation, run.config
    salience = unit_salience(config.salience, foundation, run.templates, calibration, threads=threads, seed=config.seed)
    parameters = ranked(foundation, salience).parameters
    checker = Evaluator(run.templates, calibration[:_CHECKED_BATCHES], threads=threads)
    difference = checker.max_logit_difference(foundation.parameters, parameters)
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise ModelFormatError(
            f"{config.model_dir}: the permutation changes logits by {difference:.1e}, more than "
            f"{MAX_LOGIT_DIFFERENCE:.0e}; report this architecture"
        )
    return parameters, Ordering.of(salience.orders(foundation.architecture), salience.layer_ranking())
