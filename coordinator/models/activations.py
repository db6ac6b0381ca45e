"""Norms of the inputs of a model's weight matrices on a set of examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from coordinator.models.foundation import Foundation
from coordinator.models.torch_modules import torch_module
from edge_sdk.data.batches import Batch
from edge_sdk.elastic.slicing import Array


def input_norms(foundation: Foundation, weights: Iterable[str], batches: Sequence[Batch]) -> dict[str, Array]:
    """For each of ``weights``, the Euclidean norm of each of its inputs over all tokens of ``batches``.

    Float32, shaped to be multiplied with the weight: (1, in), or (in, 1) where the family's weights are transposed.
    """
    module = torch_module(foundation)
    squares: dict[str, torch.Tensor] = {}

    def follow(name: str) -> None:
        def add(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            squares[name] = squares.get(name, torch.zeros(())) + given[0].double().flatten(0, -2).square().sum(0)

        module.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(add)

    for name in weights:
        follow(name)
    with torch.no_grad():
        for batch in batches:
            module(**{name: torch.from_numpy(values) for name, values in batch.inputs.items()})
    axis = 1 if foundation.family.is_transposed else 0
    return {name: np.expand_dims(total.sqrt().float().numpy(), axis) for name, total in squares.items()}
