"""Submodels of three families trained and run in processes of their own: predicted and measured peak memory.

None of these is among the measurements that the cost model's constants are fitted to. Widths, depths, batches, parts
and optimizers differ; uploads are compared to the byte. Compiling five models takes some minutes the first time.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.elastic.runtimes import ONNX, TORCH, Runtime
from edge_sdk.elastic.submodel import Adapters, Submodel, TrainablePart
from edge_sdk.protocol.messages import Optimizer
from edge_sdk.protocol.tensors import read_tensors
from tests.benchmarks._cost_models import SUBJECTS, Subject
from tests.benchmarks._cost_processes import Prediction, Training, prediction_peak_bytes, training_peak_bytes
from tests.benchmarks._measure import Figure, show

BAR = 0.1
_MIB = 1 << 20
_CONSTANTS = {Runtime.ONNX: ONNX, Runtime.TORCH: TORCH}
_EVERY = tuple(range(6))
_ALL, _ADAPTERS, _HEAD = TrainablePart.ALL, TrainablePart.ADAPTERS, TrainablePart.HEAD
_FALLING = Submodel(_EVERY, (12, 10, 8, 6, 4, 2), (1536, 1280, 1000, 800, 500, 300))
_MIDDLE = Submodel(_EVERY, (8,) * 6, (1024,) * 6)
_FOUR = Submodel((0, 2, 3, 5), (12, 5, 7, 12), (700, 1536, 300, 1100))
_PATCHES = Submodel(_EVERY, (6, 5, 4, 3, 2, 1), (400, 600, 800, 1000, 1200, 1400))
_THREE = Submodel((0, 1, 4), (4, 6, 2), (1536, 700, 1100))
_GROUPS = Submodel(_EVERY, (4, 3, 3, 2, 2, 1), (1024, 512, 900, 300, 700, 200))
_GATES = Submodel((0, 3, 5), (2, 4, 1), (1024, 256, 640))

CASES: dict[str, tuple[Training | Prediction, ...]] = {
    "MiniLM": (
        Training(_FALLING, batch_size=12, max_tokens=48),
        Training(_FOUR, _ALL, batch_size=8, max_tokens=64),
        Training(_FOUR, _HEAD, batch_size=24, max_tokens=64),
        Training(_MIDDLE, batch_size=20, max_tokens=40, nested=(Submodel(_EVERY, (4,) * 6, (512,) * 6),)),
        Training(_FALLING, batch_size=12, max_tokens=48, optimizer=Optimizer.SGD),
        Training(_FOUR, _ALL, batch_size=8, max_tokens=64, optimizer=Optimizer.MOMENTUM),
        Training(_MIDDLE, batch_size=24, max_tokens=64, micro_batch_size=6),
        Training(_MIDDLE, batch_size=24, max_tokens=64, optimizer=Optimizer.SGD, micro_batch_size=6),
        Training(_FOUR, batch_size=24, max_tokens=96, runtime=Runtime.TORCH),
        Training(_FOUR, batch_size=24, max_tokens=96, runtime=Runtime.TORCH, micro_batch_size=8),
        Training(_FALLING, batch_size=16, runtime=Runtime.TORCH, optimizer=Optimizer.SGD),
        Prediction(_FALLING),
        Prediction(_FOUR, quantised=True),
        Prediction(_FALLING, runtime=Runtime.TORCH),
    ),
    "MiniLM, adapters": (
        Training(Submodel(_EVERY, (9,) * 6, (1152,) * 6, 5), _ADAPTERS, batch_size=24, max_tokens=48),
        Training(Submodel(_EVERY, (5,) * 6, (1536,) * 6, 3), _ADAPTERS, batch_size=24, runtime=Runtime.TORCH),
    ),
    "ViT": (
        Training(_PATCHES, batch_size=24),
        Training(_THREE, _ALL, batch_size=10),
        Training(_PATCHES, batch_size=32, runtime=Runtime.TORCH),
        Prediction(_PATCHES),
        Prediction(_THREE, quantised=True),
    ),
    "ViT, adapters": (Training(Submodel(_EVERY, (4,) * 6, (1200,) * 6, 8), _ADAPTERS, batch_size=20),),
    "Llama": (
        Training(_GROUPS, batch_size=10, max_tokens=96),
        Training(_GATES, _ALL, batch_size=12, max_tokens=48),
        Training(_GROUPS, batch_size=12, max_tokens=96, optimizer=Optimizer.MOMENTUM, micro_batch_size=4),
        Training(_GROUPS, batch_size=12, max_tokens=48, nested=(Submodel(_EVERY, (2, 2, 2, 2, 2, 1), (200,) * 6),)),
        Training(_GROUPS, batch_size=12, max_tokens=80, runtime=Runtime.TORCH),
        Prediction(_GROUPS, max_tokens=96),
        Prediction(_GATES, max_tokens=96, quantised=True),
        Prediction(_GATES, runtime=Runtime.TORCH),
    ),
    "Llama, adapters": (Training(Submodel(_EVERY, (3,) * 6, (800,) * 6, 4), _ADAPTERS, batch_size=12, max_tokens=80),),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Bytes of memory of one process."""

    label: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Of the measured."""
        return self.predicted / self.measured - 1


def run() -> Figure:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [
            outcome for number, name in enumerate(CASES) for outcome in _outcomes(name, Path(folder) / str(number))
        ]
    rows = [
        (each.label, f"{_mib(each.predicted)} {_mib(each.measured)} {100 * each.error:+7.1f} %") for each in outcomes
    ]
    show("peak memory of a process, MiB: predicted, measured, error", rows)
    errors = [abs(outcome.error) for outcome in outcomes]
    median, worst = statistics.median(errors), max(errors)
    more = {"median_error": round(median, 4), "worst_error": round(worst, 4), "processes": len(errors)}
    return Figure("cost_model", max(median, worst / 2), BAR, "the larger of median error and half the worst", more)


def _outcomes(name: str, folder: Path) -> list[Outcome]:
    family, _, has_adapters = name.partition(", ")
    subject = SUBJECTS[family](folder, Adapters() if has_adapters else None)
    return [_outcome(name, subject, case) for case in CASES[name]]


def _outcome(name: str, subject: Subject, case: Training | Prediction) -> Outcome:
    label = f"{name}, {case.submodel.width}, {case.runtime.value}"
    if isinstance(case, Training):
        is_text = not subject.foundation.input_shape
        tokens = case.max_tokens if is_text else subject.foundation.architecture.positions
        label += f", {case.part.value}, {case.batch_size} x {tokens}{', nested' if case.nested else ''}"
        label += f", {case.optimizer.value}" if case.optimizer is not Optimizer.ADAMW else ""
        label += f", {case.micro_batch_size} at a time" if case.micro_batch_size else ""
        outcome = Outcome(label, _training_bytes(subject, case), training_peak_bytes(subject, case))
        _check_upload(subject, case)
        return outcome
    label += f", predicting{', int8' if case.quantised else ''}"
    predicted = subject.costs.inference_memory_bytes(
        case.submodel, max_tokens=case.max_tokens, quantised=case.quantised, runtime=_CONSTANTS[case.runtime]
    )
    return Outcome(label, predicted, prediction_peak_bytes(subject, case))


def _training_bytes(subject: Subject, case: Training) -> int:
    return subject.costs.training_memory_bytes(
        case.submodel,
        case.part,
        batch_size=case.micro_batch_size or case.batch_size,
        max_tokens=case.max_tokens,
        nested=case.nested,
        runtime=_CONSTANTS[case.runtime],
        moments=case.optimizer.moments,
        is_summed=case.micro_batch_size is not None,
    )


def _check_upload(subject: Subject, case: Training) -> None:
    """What the process wrote for upload is what was predicted."""
    written = read_tensors((subject.folder / "update").read_bytes())
    found, predicted = (
        sum(values.nbytes for values in written.values()),
        subject.costs.update_bytes(case.submodel, case.part),
    )
    if found != predicted:
        raise RuntimeError(f"the update has {found} bytes, predicted were {predicted}")


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / _MIB:6.0f}"
