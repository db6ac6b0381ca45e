"""Training on stock onnxruntime: a graph that returns gradients, and AdamW on numpy arrays.

Where the bytes are at the worst moment, the start of the backward pass:

    weights, two moments   one flat private float32 array each; the session reads the weights in place
    activations            the session's arena, which keeps its size from step to step
    gradients              in that arena, in room that activations left; the optimizer reads them in place
    frozen parameters      those pages of the mapped file that a step touches, the same ones in each
    frozen embeddings      the rows that the batch looks up, read from the file

Measured on MiniLM, full width, 16 x 32 tokens, one thread, all embeddings resident: 369 MiB with gradients in buffers
of their own, 362 with gradients in the arena, and 327 with nodes ordered by priority as well, in the same time. Memory
patterns add 83 MiB. Without an arena it was 324, but up to twice the time: every activation is mapped and faulted in
anew.

On a GPU all this stays as it is: each step copies parameters there and gradients back, and the optimizer runs here.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_sdk.data.batches import Batch
from edge_sdk.decoding import brief
from edge_sdk.elastic.slicing import Array
from edge_sdk.errors import ModelFormatError, TrainingError
from edge_sdk.protocol.graphs import GRADIENT, INPUTS, LOGIT_OFFSET, LOGITS, LOSS, TARGETS
from edge_sdk.protocol.tensors import Tensors, read_tensors
from edge_sdk.sessions import FAILURES, open_session, session_options
from edge_sdk.training.flat import flat_copy, views_of, zeros
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.lookup import Lookup
from edge_sdk.training.memory import out_of_memory
from edge_sdk.training.nested import has_teacher, nested_prefixes, taught_targets
from edge_sdk.training.optimizers import optimizer_of
from edge_sdk.training.proximal import ProximalTerm

_STEPS, _WEIGHTS = "steps", "weights"  # of a checkpoint
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory")
_share = ort.OrtValue.ortvalue_from_numpy  # shares the array's memory on CPU


class OnnxRuntime:
    """A :class:`~edge_sdk.training.runtime.TrainingRuntime` for ``job``.

    ``logit_offset`` (labels,) is added to the logits in the loss. Raises ``ModelFormatError`` where the graph cannot be
    loaded or does not fit the parameters, ``TensorTableError`` for a bad parameter file, ``TrainingMemoryError`` where
    memory runs out.
    """

    def __init__(self, job: TrainingJob, logit_offset: Array) -> None:
        self._job, self._offset = job, logit_offset
        self._session = _load_session(job)
        self._flat, self._weights = flat_copy(_smallest_first(read_tensors(memoryview(_map(job.weights)))))
        pages = memoryview(_map(job.frozen))
        self._parameters = {**read_tensors(pages), **self._weights}
        self._lookup = Lookup(Path(job.frozen), pages, [node.name for node in self._session.get_inputs()])
        self._gradients = [GRADIENT + name for name in self._weights]
        self._teaches = bool(job.nested) and has_teacher(job.recipe, job.architecture.task)
        self._outputs = [*([LOGITS] if self._teaches else []), LOSS, *self._gradients]
        feeds = {*INPUTS[job.architecture.task], TARGETS, LOGIT_OFFSET, *self._parameters, *self._lookup.places}
        _check_graph(self._session, feeds, self._outputs)
        whole = {name: values for name, values in self._parameters.items() if name not in self._lookup.tables}
        self._constants = self._shared({LOGIT_OFFSET: logit_offset, **whole})
        prefixes = nested_prefixes(job.nested, job.architecture, self._parameters)
        self._nested = [(prefix, self._shared(prefix.values)) for prefix in prefixes]
        self._proximal = ProximalTerm(Path(job.weights), job.recipe.proximal) if job.recipe.proximal else None
        self._optimizer = optimizer_of(job.recipe, self._flat.size)
        shapes = {name: values.shape for name, values in self._weights.items()}
        self._sums = views_of(zeros(shapes), shapes) if job.recipe.micro_batch_size else {}
        self._whole: dict[str, Array] = {}

    def accumulate(self, batch: Batch, share: float) -> float:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`; the loss is the whole submodel's."""
        given = {**batch.inputs, **self._lookup.feeds(batch.inputs)}
        inputs = {name: _share(values) for name, values in given.items()}
        values = self._run(self._outputs, {**self._constants, **inputs, TARGETS: _share(batch.targets)})
        gradients = self._by_weight(values, self._weights)
        if self._nested:
            targets = self._taught(batch.targets, values.pop(LOGITS)) if self._teaches else batch.targets
            self._add_nested(gradients, {**inputs, TARGETS: _share(targets)})
        if self._sums:
            for name, gradient in gradients.items():
                self._sums[name] += np.multiply(gradient, np.float32(share), out=gradient)
        else:
            self._whole = gradients
        return float(values[LOSS].numpy())

    def update(self) -> None:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`."""
        gradients = self._sums or self._whole
        if self._proximal is not None:
            self._proximal.add(gradients, self._weights)
        self._optimizer.step(self._flat, [gradient.reshape(-1) for gradient in gradients.values()])
        self._whole = {}  # their memory is the next step's
        for total in self._sums.values():
            total.fill(0)

    def state(self) -> Mapping[str, NDArray[Any]]:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`."""
        steps = np.array([self._optimizer.steps], dtype=np.int64)
        return {_STEPS: steps, _WEIGHTS: self._flat, **self._optimizer.state}

    def restore(self, state: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`."""
        into = {_WEIGHTS: self._flat, **self._optimizer.state}
        for name, values in state:
            if name == _STEPS:
                self._optimizer.steps = int(values[0])
            else:
                np.copyto(into[name], values)

    def _taught(self, targets: Array, logits: ort.OrtValue) -> Array:
        return taught_targets(targets, _view(logits), self._offset, self._job.recipe.distillation)

    def _add_nested(self, gradients: Mapping[str, Array], feeds: Mapping[str, ort.OrtValue]) -> None:
        """Add the gradients of every nested submodel, one after the other."""
        for prefix, narrow in self._nested:
            prefix.refresh(self._parameters)
            inner = self._run(self._gradients, {**self._constants, **narrow, **feeds})
            prefix.add(gradients, self._by_weight(inner, {**self._weights, **prefix.values}))

    def _by_weight(self, values: Mapping[str, ort.OrtValue], fed: Mapping[str, Array]) -> dict[str, Array]:
        """The gradient of each weight. ``ModelFormatError`` where it has another shape than was ``fed``."""
        gradients = {name: _view(values[GRADIENT + name]) for name in self._weights}
        for name, gradient in gradients.items():
            if gradient.shape != fed[name].shape:
                raise ModelFormatError(
                    f"training graph gives {name} of {fed[name].shape} a gradient of {gradient.shape}; fetch it again"
                )
        return gradients

    def _run(self, outputs: Sequence[str], feeds: Mapping[str, ort.OrtValue]) -> dict[str, ort.OrtValue]:
        """The graph's outputs by name, in the session's memory."""
        try:
            values = self._session.run_with_ort_values(outputs, feeds)
        except FAILURES as error:
            raise _step_error(error, self._job.memory_limit_bytes) from error
        return dict(zip(outputs, values, strict=True))

    def _shared(self, arrays: Mapping[str, Array]) -> dict[str, ort.OrtValue]:
        """Those of ``arrays`` that the graph takes."""
        used = {node.name for node in self._session.get_inputs()}
        return {name: _share(values) for name, values in arrays.items() if name in used}

    def finish(self) -> Mapping[str, Array]:
        """Trained values less first values, in place of the former; everything else is freed first.

        Raises ``TrainingError`` where a value is not finite.
        """
        del self._session, self._optimizer, self._constants, self._nested, self._proximal, self._sums, self._whole
        del self._lookup
        first = read_tensors(memoryview(_map(self._job.weights)))
        for name, values in self._weights.items():
            np.subtract(values, first[name], out=values)
            if not np.isfinite(values).all():
                raise TrainingError(f"training made {name} not finite; lower the learning rate or set clip_norm")
        return {name: self._weights[name] for name in first}


def _smallest_first(tensors: Tensors) -> Tensors:
    """The optimizer then takes those of a few entries together, which most are."""
    return dict(sorted(tensors.items(), key=lambda item: item[1].size))


def _load_session(job: TrainingJob) -> ort.InferenceSession:
    _register_arena()
    options = session_options(job.threads)
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # runs weight gradients early, so activations go early
    try:
        return open_session(job.graph, options, job.providers)
    except FAILURES as error:
        if _is_out_of_memory(error):
            raise out_of_memory(job.memory_limit_bytes, "while loading the graph") from error
        raise ModelFormatError(f"training graph {job.graph} cannot be loaded: {brief(error)}") from error


def _register_arena() -> None:
    """An arena that grows by what is asked for.

    By default it grows by powers of two, and what it maps beyond its need counts against the limit on mapped memory:
    training then fails for memory that it would never touch.
    """
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def _check_graph(session: ort.InferenceSession, feeds: set[str], outputs: Sequence[str]) -> None:
    """``ModelFormatError`` where the graph asks for what is not there, or does not give what is needed."""
    lacking = {node.name for node in session.get_inputs()} - feeds
    missing = set(outputs) - {node.name for node in session.get_outputs()}
    if lacking or missing:
        msg = (
            f"training graph needs inputs {sorted(lacking)[:3]} and lacks outputs {sorted(missing)[:3]}; fetch it again"
        )
        raise ModelFormatError(msg)


def _step_error(error: Exception, limit_bytes: int) -> TrainingError:
    if _is_out_of_memory(error):
        return out_of_memory(limit_bytes, "in a training step")
    return TrainingError(f"training step failed: {brief(error)}")


def _is_out_of_memory(error: Exception) -> bool:
    return any(sign in str(error) for sign in _NO_MEMORY)


def _view(value: ort.OrtValue) -> Array:
    """The memory of ``value`` itself, writable, which keeps it."""
    shape = value.shape()
    memory: Any = (ctypes.c_float * math.prod(shape)).from_address(value.data_ptr())
    memory.owner = value
    view: Array = np.ndarray(shape, np.float32, memory)
    return view


def _map(path: str) -> mmap.mmap:
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
