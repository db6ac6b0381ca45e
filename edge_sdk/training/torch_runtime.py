"""Training on torch: for adapters that ONNX cannot train, for GPUs, and as a reference for the other runtime.

Needs the extra ``torch``. Autograd does what :mod:`.onnx_runtime` has in its graph and :mod:`.nested` does by hand: a
nested submodel runs on differentiable slices of the parameters, so its gradients add up in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
from edge_sdk.decoding import brief
from edge_sdk.elastic.slicing import Array, Region
from edge_sdk.errors import ConfigurationError, ModelFormatError, RaffmError, TrainingError
from edge_sdk.modules.building import full_name, submodel_module
from edge_sdk.protocol.messages import Optimizer, Recipe
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.training.job import TrainingJob
from edge_sdk.training.memory import out_of_memory
from edge_sdk.training.nested import has_teacher, nested_slices
from edge_sdk.training.optimizers import MOMENTUM

_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")
_WEIGHT, _SCALER = "weight", "scaler"  # of a checkpoint
_SCALE_TYPES = {"scale": np.float32, "_growth_tracker": np.int64}  # the entries of a scaler's state that change
_Tensors = dict[str, torch.Tensor]


class TorchRuntime:
    """A :class:`~edge_sdk.training.runtime.TrainingRuntime` for ``job``, on a CUDA device where there is one.

    ``logit_offset`` (labels,) is added to the logits in the loss. Raises ``ModelFormatError`` if the configuration
    cannot be read or does not fit the parameters, ``TensorTableError`` for a bad parameter file,
    ``TrainingMemoryError`` if memory runs out.
    """

    def __init__(self, job: TrainingJob, logit_offset: Array) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with _errors_of_torch(job, ModelFormatError, "the model cannot be made"):
            first = _copies(job.weights)
            self._module = _module(job, {**_copies(job.frozen), **first}).to(self._device)
            self._recomputed = _recomputed(self._module) if job.gradient_checkpointing else []
        self._offset = self._tensor(logit_offset)
        owns = [own for own, _ in self._module.named_parameters()]
        self._names = {own: full_name(own, job.architecture, job.submodel) for own in owns}
        self._parameters = {name: self._module.get_parameter(own) for own, name in self._names.items()}
        self._weights = _trained(self._parameters, first)
        self._first = {name: value.detach().clone() for name, value in self._weights.items() if job.recipe.proximal}
        shapes = {name: tuple(value.shape) for name, value in self._parameters.items()}
        self._nested = [nested_slices(part, job.architecture, shapes) for part in job.nested]
        self._optimizer = _optimizer_of(job.recipe, list(self._weights.values()))
        self._precision = _precision_on(self._device) if job.mixed_precision else torch.float32
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._precision is torch.float16)

    def accumulate(self, batch: Batch, share: float) -> float:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`; the loss is the whole submodel's."""
        with _errors_of_torch(self._job, TrainingError, "training step failed"):
            return self._add_gradients(batch, share)

    def update(self) -> None:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`."""
        with _errors_of_torch(self._job, TrainingError, "training step failed"):
            self._scaler.unscale_(self._optimizer)
            self._add_proximal()
            if self._job.recipe.clip_norm is not None:
                clip_grad_norm_(self._weights.values(), self._job.recipe.clip_norm)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad()  # at once, so that gradients are not held through the next forward pass

    def state(self) -> Mapping[str, NDArray[Any]]:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`."""
        state = {f"{_WEIGHT}:{name}": _array(values) for name, values in self._weights.items()}
        for name, values in self._weights.items():
            remembered = self._optimizer.state.get(values, {})
            state |= {f"{key}:{name}": _array(kept) for key, kept in remembered.items() if kept is not None}
        scaling = self._scaler.state_dict().items()  # empty where losses are not scaled
        return state | {f"{_SCALER}:{k}": np.array([v], _SCALE_TYPES[k]) for k, v in scaling if k in _SCALE_TYPES}

    def restore(self, state: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`."""
        for key, values in state:
            kind, _, name = key.partition(":")
            if kind == _SCALER:
                self._scaler.load_state_dict({**self._scaler.state_dict(), name: values.item()})
            elif kind == _WEIGHT:
                self._weights[name].data.copy_(torch.from_numpy(values.copy()))
            else:
                kept = torch.from_numpy(values.copy()).to(self._device)
                self._optimizer.state[self._weights[name]][kind] = kept

    def finish(self) -> Mapping[str, Array]:
        """See :class:`~edge_sdk.training.runtime.TrainingRuntime`."""
        first = _copies(self._job.weights)
        for name, values in self._weights.items():
            np.subtract(values.detach().cpu().numpy(), first[name], out=first[name])
            if not np.isfinite(first[name]).all():
                raise TrainingError(f"training made {name} not finite; lower the learning rate or set clip_norm")
        return first

    def _add_gradients(self, batch: Batch, share: float) -> float:
        """Add the gradients of all widths; the loss of the whole submodel."""
        inputs = {name: self._tensor(values) for name, values in batch.inputs.items()}
        targets = self._tensor(batch.targets)
        self._recompute(True)
        with self._autocast():
            logits = self._module(**inputs).logits
        loss = self._loss(logits, targets)
        self._scaler.scale(share * loss).backward()
        if self._nested:
            targets = self._taught(targets, logits.detach())
            self._recompute(False)  # recomputing happens after functional_call, with the whole submodel's parameters
        for slices in self._nested:
            narrow = {
                own: _cut(self._parameters[name], slices[name]) for own, name in self._names.items() if name in slices
            }
            with self._autocast():
                logits = functional_call(self._module, narrow, (), inputs).logits
            self._scaler.scale(share * self._loss(logits, targets)).backward()
        return float(loss.detach())

    def _recompute(self, on: bool) -> None:
        for layer in self._recomputed:
            layer.training = on  # its own flag alone: dropout stays off

    def _autocast(self) -> torch.autocast:
        """Mixed precision, if it is on; the loss is always in float32."""
        reduced = self._precision is not torch.float32
        return torch.autocast(self._device.type, dtype=self._precision if reduced else None, enabled=reduced)

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The scalar that :mod:`edge_sdk.protocol.graphs` defines."""
        logits = logits.float()
        if self._job.architecture.task.generates:
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return -(targets * functional.log_softmax(logits + self._offset, dim=-1)).sum() / targets.sum()

    def _taught(self, targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The targets of nested submodels, as :func:`edge_sdk.training.nested.taught_targets`."""
        if not has_teacher(self._job.recipe, self._job.architecture.task):
            return targets
        taught = functional.softmax(logits.float() + self._offset, dim=-1) * targets.sum(dim=-1, keepdim=True)
        return torch.lerp(targets, taught, self._job.recipe.distillation)

    def _add_proximal(self) -> None:
        """Add FedProx's gradient, as :class:`edge_sdk.training.proximal.ProximalTerm`."""
        for name, first in self._first.items():
            weight = self._weights[name]
            weight.grad.add_(weight.detach() - first, alpha=self._job.recipe.proximal)


def _module(job: TrainingJob, parameters: dict[str, Array]) -> torch.nn.Module:
    """The submodel's module, which shares the memory of ``parameters``. Raises ``ModelFormatError``."""
    try:
        return submodel_module(Path(job.config).read_bytes(), job.architecture, job.submodel, parameters)
    except KeyError as error:
        raise ModelFormatError(f"parameter {error} is in neither parameter file; fetch them again") from error


def _recomputed(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that can keep only their input, and run again in the backward pass (arXiv 1604.06174)."""
    if not getattr(module, "supports_gradient_checkpointing", False):
        raise ConfigurationError(
            f"{type(module).__name__} has no gradient checkpointing; leave gradient_checkpointing off on this device"
        )
    module.activation_checkpointing_enable({"use_reentrant": False})
    return [layer for layer in module.modules() if getattr(layer, "gradient_checkpointing", False)]


def _precision_on(device: torch.device) -> torch.dtype:
    """bfloat16 if the device supports it, as processors do; else float16, which needs loss scaling."""
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def _optimizer_of(recipe: Recipe, weights: list[torch.Tensor]) -> torch.optim.Optimizer:
    """As :func:`edge_sdk.training.optimizers.optimizer_of`."""
    options: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer is Optimizer.ADAMW:
        return torch.optim.AdamW(weights, **options)
    return torch.optim.SGD(weights, momentum=MOMENTUM if recipe.optimizer is Optimizer.MOMENTUM else 0.0, **options)


def _array(values: torch.Tensor) -> NDArray[Any]:
    return np.asarray(values.detach().cpu().numpy())


def _trained(parameters: _Tensors, first: Mapping[str, Array]) -> _Tensors:
    """Those of ``parameters`` that ``first`` names; gradients are switched off for the others."""
    if unknown := first.keys() - parameters.keys():
        raise ModelFormatError(f"the model has no parameters {sorted(unknown)[:3]}; fetch the weights again")
    for name, value in parameters.items():
        value.requires_grad_(name in first)
    return {name: parameters[name] for name in first}


def _cut(values: torch.Tensor, region: Region) -> torch.Tensor:
    """The part ``region`` of ``values``; differentiable."""
    for axis, ranges in enumerate(region.axes):
        if [len(part) for part in ranges] != [values.shape[axis]]:
            values = torch.cat([values.narrow(axis, part.start, len(part)) for part in ranges], dim=axis)
    return values


def _copies(path: str) -> dict[str, Array]:
    """Copies of the arrays in a tensor file, whose memory torch can share."""
    return {name: np.array(values) for name, values in read_tensors(Path(path).read_bytes()).items()}


@contextmanager
def _errors_of_torch(job: TrainingJob, kind: type[RaffmError], what: str) -> Iterator[None]:
    """Turn what torch and transformers raise into ``kind``, or into ``TrainingMemoryError`` if memory ran out."""
    try:
        yield
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if any(sign in str(error) for sign in _NO_MEMORY):
            raise out_of_memory(job.memory_limit_bytes, what) from error
        raise kind(f"{what}: {brief(error)}") from error
