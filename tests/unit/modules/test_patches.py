"""Patches by a product equal those by a convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edge_sdk.modules.patches import PatchProjection, replace_patch_convolutions


@pytest.mark.parametrize("has_bias", [True, False])
def test_patch_projection_equals_the_convolution_and_its_gradients(has_bias: bool) -> None:
    torch.manual_seed(3)
    convolution = nn.Conv2d(3, 7, kernel_size=(4, 2), stride=(4, 2), bias=has_bias).double()
    pixels = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    weight = torch.randn(2, 7, 3, 4, dtype=torch.float64)
    results = []
    for module in (convolution, PatchProjection(convolution)):
        output = module(pixels)
        (gradient,) = torch.autograd.grad((output * weight).sum(), module.weight)
        results.append((output, gradient))

    (expected, expected_gradient), (output, gradient) = results
    assert (output - expected).abs().max() <= 1e-13
    assert (gradient - expected_gradient).abs().max() <= 1e-12


def test_only_convolutions_that_cut_patches_are_replaced() -> None:
    patches, overlapping = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 3, stride=1)
    model = nn.Sequential(patches, nn.Sequential(overlapping))
    replace_patch_convolutions(model)

    assert isinstance(model[0], PatchProjection)
    assert model[0].weight is patches.weight
    assert model[1][0] is overlapping
