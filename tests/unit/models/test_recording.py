"""Functions whose record holds at every size, and functions whose record would not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch

from coordinator.models.joint_export import export_function
from coordinator.models.recording import FreeSize, FreeSizes
from coordinator.models.template_export import gradients_of
from edge_sdk.errors import ModelFormatError

Function = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]

ROWS = FreeSize("rows", units=5)
COLUMNS = FreeSize("columns", units=2, entries=3)


def free(tensor: torch.Tensor) -> FreeSizes:
    known = {5: ROWS, 6: COLUMNS}
    return {axis: known[size] for axis, size in enumerate(tensor.shape) if size in known}


def arguments(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, columns, generator=generator)
    return x, torch.randn(columns, 4, generator=generator).requires_grad_(True)


def layer(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """With what models do: a change in place, pieces of a symbolic size, a product of sizes, a gradient."""
    hidden = x * 2
    hidden += 1
    first, second, third = hidden.split(hidden.shape[1] // 3, dim=1)
    joined = torch.cat((third, first, second), dim=1).view(-1, hidden.shape[1])
    out = torch.nn.functional.gelu(torch.nn.functional.layer_norm(joined @ w, (4,)))
    return (out, *gradients_of((out.sum(),), {"w": w}, (torch.ones(()),)))


def norm(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A norm whose input, weight and bias all depend on ``w``; its input's mean is not near zero."""
    out = torch.nn.functional.layer_norm((x @ w + 3).unsqueeze(0), (4,), weight=w[0], bias=w[1])
    return (out, *gradients_of((out.square().sum(),), {"w": w}, (torch.ones(()),)))


@pytest.fixture(scope="module", params=[layer, norm])
def recorded(request: pytest.FixtureRequest) -> tuple[Function, onnxruntime.InferenceSession]:
    """A function, and its graph recorded at 5 rows of 6."""
    made = export_function(request.param, arguments(5, 6), free, inputs=["x", "w"], outputs=["out", "grad.w"])
    return request.param, onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("rows", "columns"), [(5, 6), (7, 12), (1, 3), (64, 3)])
def test_graph_gives_what_the_function_gives_at_any_size(
    recorded: tuple[Function, onnxruntime.InferenceSession], rows: int, columns: int
) -> None:
    x, w = arguments(rows, columns)
    function, graph = recorded
    actual = graph.run(None, {"x": x.numpy(), "w": w.detach().numpy()})

    for ours, theirs in zip(actual, function(x, w), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


def another_way(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x @ w if x.shape[0] > 3 else x.sum() + w,)


def fixed(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x.view(5, x.shape[1]) @ w,)


def equal(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x @ w * (2 if x.shape[1] // 3 == x.shape[0] - 3 else 1),)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (another_way, "works in another way at rows 1, columns 1"),
        (fixed, "takes rows for 5"),
        (equal, r"takes (rows|3\*columns) for"),
    ],
)
def test_function_that_differs_at_other_sizes_is_refused(function: Function, words: str) -> None:
    with pytest.raises(ModelFormatError, match=words):
        export_function(function, arguments(5, 6), free, inputs=["x", "w"], outputs=["out"])


def test_lost_input_is_named() -> None:
    with pytest.raises(ModelFormatError, match="kept 1 of 2 values"):
        export_function(lambda x, w: (x @ w, x @ w)[:1], arguments(5, 6), free, inputs=["x", "w"], outputs=["a", "b"])
