"""A start for the new head: logistic regression on what the foundation model already knows.

A random head's gradients say little about which heads and neurons matter, and its first steps disturb the layers below.
A second on the calibration texts gives it a direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from coordinator.models.foundation import Foundation
from coordinator.models.text_batches import TextBatch

if TYPE_CHECKING:
    import torch
    from torch import nn

_STEPS = 60
_LEARNING_RATE = 1e-2


def with_fitted_head(foundation: Foundation, calibration: Sequence[TextBatch]) -> Foundation:
    """The foundation with its last linear layer fitted to ``calibration``, all else untouched. Deterministic.

    That layer's inputs are computed once; then Adam on all of them together.
    """
    import torch  # noqa: PLC0415 - seconds of import
    from torch.nn import functional  # noqa: PLC0415

    name, layer, features = _last_layer(foundation, calibration)
    labels = torch.from_numpy(np.concatenate([batch.labels for batch in calibration]))
    optimizer = torch.optim.Adam(layer.parameters(), lr=_LEARNING_RATE)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(layer(features), labels).backward()
        optimizer.step()
    fitted = {f"{name}.{key}": value.detach().numpy().copy() for key, value in layer.state_dict().items()}
    return replace(foundation, parameters=foundation.parameters | fitted)


def _last_layer(foundation: Foundation, calibration: Sequence[TextBatch]) -> tuple[str, nn.Linear, torch.Tensor]:
    """Name and copy of the last linear layer, and what enters it for every text, shape (texts, features)."""
    import torch  # noqa: PLC0415

    from coordinator.models.torch_modules import torch_module  # noqa: PLC0415

    module = torch_module(foundation)
    name, last = [found for found in module.named_modules() if isinstance(found[1], torch.nn.Linear)][-1]
    inputs: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        for batch in calibration:
            ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
            module(input_ids=ids, attention_mask=mask)
    copy = torch.nn.Linear(last.in_features, last.out_features)
    copy.load_state_dict(last.state_dict())
    return name, copy, torch.cat(inputs)
