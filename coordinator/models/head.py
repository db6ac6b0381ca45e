"""Initialises a new head: logistic regression on the features of the foundation model.

A random head's gradients say little about which heads and neurons matter, and its first steps disturb the layers below.
A second on the calibration texts gives it a direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.models.foundation import Foundation
from edge_sdk.data.batches import Batch

if TYPE_CHECKING:
    import torch
    from torch import nn

_STEPS = 60
_LEARNING_RATE = 1e-2


def with_fitted_head(foundation: Foundation, calibration: Sequence[Batch]) -> Foundation:
    """The foundation with its last linear layer fitted to ``calibration``, all else untouched. Deterministic.

    That layer's inputs are computed once; then Adam on all of them together. A head that generates text is no new one
    and is left as it is.
    """
    if foundation.architecture.task.generates:
        return foundation
    import torch  # noqa: PLC0415 - seconds of import

    from coordinator.models.template_export import mean_loss  # noqa: PLC0415

    name, layer, features = _last_layer(foundation, calibration)
    labels = foundation.architecture.labels
    targets = torch.cat([torch.from_numpy(batch.targets).reshape(-1, labels) for batch in calibration])
    optimizer = torch.optim.Adam(layer.parameters(), lr=_LEARNING_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        mean_loss(foundation.architecture.task, layer(features), targets).backward()
        optimizer.step()
    fitted = {f"{name}.{key}": value.detach().numpy().copy() for key, value in layer.state_dict().items()}
    return replace(foundation, parameters=foundation.parameters | fitted)


def _last_layer(foundation: Foundation, calibration: Sequence[Batch]) -> tuple[str, nn.Linear, torch.Tensor]:
    """Name and copy of the head's last linear layer, and what enters it for every target, shape (targets, features)."""
    import torch  # noqa: PLC0415

    from coordinator.models.torch_modules import torch_module  # noqa: PLC0415

    module = torch_module(foundation)
    linear = [name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)]
    name = [found for found in linear if f"{found}.".startswith(foundation.family.head)][-1]
    last, inputs = module.get_submodule(name), list[torch.Tensor]()
    last.register_forward_pre_hook(lambda _, given: inputs.append(given[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in calibration:
            module(**{key: torch.from_numpy(values) for key, values in batch.inputs.items()})
    copy = torch.nn.Linear(last.in_features, last.out_features, bias=last.bias is not None)
    copy.load_state_dict(last.state_dict())
    return name, copy, torch.cat(inputs)
