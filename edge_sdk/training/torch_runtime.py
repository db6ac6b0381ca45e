"""Training on torch: for adapters that ONNX cannot train, for GPUs, and to hold the other runtime against.

Needs the extra ``torch``. Autograd does here what :mod:`.onnx_runtime` has in its graph and :mod:`.nested` by hand: a
nested submodel runs on differentiable slices of the parameters, so that its gradients add up in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from edge_sdk.data.batches import Batch
from edge_sdk.elastic.slicing import Array, Region
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ModelFormatError, RaffmError, TrainingError
from edge_sdk.modules.building import full_name, submodel_module
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.memory import out_of_memory
from edge_sdk.training.nested import has_teacher, nested_slices

_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")
_Tensors = dict[str, torch.Tensor]


class TorchRuntime:
    """A :class:`~edge_sdk.training.runtime.TrainingRuntime` for ``job``, on a CUDA device where there is one.

    ``logit_offset`` (labels,) is added to the logits in the loss. Raises ``ModelFormatError`` where the configuration
    cannot be read or does not fit the parameters, ``TensorTableError`` for a bad parameter file,
    ``TrainingMemoryError`` where memory runs out.
    """

    def __init__(self, job: TrainingJob, logit_offset: Array) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with _errors_of_torch(job, ModelFormatError, "the model cannot be made"):
            first = _copies(job.weights)
            self._module = _module(job, {**_copies(job.frozen), **first}).to(self._device)
        self._offset = self._tensor(logit_offset)
        owns = [own for own, _ in self._module.named_parameters()]
        self._names = {own: full_name(own, job.architecture, job.submodel) for own in owns}
        self._parameters = {name: self._module.get_parameter(own) for own, name in self._names.items()}
        self._weights = _trained(self._parameters, first)
        self._first = {name: value.detach().clone() for name, value in self._weights.items() if job.recipe.proximal}
        shapes = {name: tuple(value.shape) for name, value in self._parameters.items()}
        self._nested = [nested_slices(part, job.architecture, shapes) for part in job.nested]
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), job.recipe.learning_rate, weight_decay=job.recipe.weight_decay, fused=True
        )

    def step(self, batch: Batch) -> float:
        """Train on ``batch``; the mean loss over it of the whole submodel, before the update."""
        with _errors_of_torch(self._job, TrainingError, "training step failed"):
            loss = self._add_gradients(batch)
            self._add_proximal()
            if self._job.recipe.clip_norm is not None:
                clip_grad_norm_(self._weights.values(), self._job.recipe.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()  # at once, so that gradients are not held through the next forward pass
            return loss

    def finish(self) -> Mapping[str, Array]:
        """Trained values less first values; ``TrainingError`` where one is not finite."""
        first = _copies(self._job.weights)
        for name, values in self._weights.items():
            np.subtract(values.detach().cpu().numpy(), first[name], out=first[name])
            if not np.isfinite(first[name]).all():
                raise TrainingError(f"training made {name} not finite; lower the learning rate or set clip_norm")
        return first

    def _add_gradients(self, batch: Batch) -> float:
        """Of all widths; the loss of the whole submodel."""
        inputs = {name: self._tensor(values) for name, values in batch.inputs.items()}
        targets = self._tensor(batch.targets)
        logits = self._module(**inputs).logits
        loss = self._loss(logits, targets)
        loss.backward()
        if self._nested:
            targets = self._taught(targets, logits.detach())
        for slices in self._nested:
            narrow = {
                own: _cut(self._parameters[name], slices[name]) for own, name in self._names.items() if name in slices
            }
            self._loss(functional_call(self._module, narrow, (), inputs).logits, targets).backward()
        return float(loss.detach())

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The scalar that :mod:`edge_sdk.protocol.graphs` defines."""
        if self._job.architecture.task is ModelTask.TEXT_GENERATION:
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return -(targets * functional.log_softmax(logits + self._offset, dim=-1)).sum() / targets.sum()

    def _taught(self, targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """What nested submodels learn from, as :func:`edge_sdk.training.nested.taught_targets`."""
        if not has_teacher(self._job.recipe, self._job.architecture.task):
            return targets
        taught = functional.softmax(logits + self._offset, dim=-1) * targets.sum(dim=-1, keepdim=True)
        return torch.lerp(targets, taught, self._job.recipe.distillation)

    def _add_proximal(self) -> None:
        """Add FedProx's gradient, as :class:`edge_sdk.training.proximal.ProximalTerm`."""
        for name, first in self._first.items():
            weight = self._weights[name]
            weight.grad.add_(weight.detach() - first, alpha=self._job.recipe.proximal)


def _module(job: TrainingJob, parameters: dict[str, Array]) -> torch.nn.Module:
    """The submodel in the memory of ``parameters``."""
    try:
        return submodel_module(Path(job.config).read_bytes(), job.architecture, job.submodel, parameters)
    except KeyError as error:
        raise ModelFormatError(f"parameter {error} is in neither parameter file; fetch them again") from error


def _trained(parameters: _Tensors, first: Mapping[str, Array]) -> _Tensors:
    """Those of ``parameters`` that ``first`` names; the others will get no gradient."""
    if unknown := first.keys() - parameters.keys():
        raise ModelFormatError(f"the model has no parameters {sorted(unknown)[:3]}; fetch the weights again")
    for name, value in parameters.items():
        value.requires_grad_(name in first)
    return {name: parameters[name] for name in first}


def _cut(values: torch.Tensor, region: Region) -> torch.Tensor:
    """The part of ``values`` that ``region`` names; differentiable."""
    for axis, ranges in enumerate(region.axes):
        if [len(part) for part in ranges] != [values.shape[axis]]:
            values = torch.cat([values.narrow(axis, part.start, len(part)) for part in ranges], dim=axis)
    return values


def _copies(path: str) -> dict[str, Array]:
    """The arrays of a tensor file, in memory of their own that torch may share."""
    return {name: np.array(values) for name, values in read_tensors(Path(path).read_bytes()).items()}


@contextmanager
def _errors_of_torch(job: TrainingJob, kind: type[RaffmError], what: str) -> Iterator[None]:
    """Turn what torch and transformers raise into ``kind``, or into the error for want of memory."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if any(sign in str(error) for sign in _NO_MEMORY):
            raise out_of_memory(job.memory_limit_bytes, what) from error
        first_line = str(error).partition("\n")[0][:300]
        raise kind(f"{what}: {first_line}") from error
