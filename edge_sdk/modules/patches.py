"""Embeds an image's patches by a matrix product, which equals a convolution whose stride is its kernel's size.

The gradient of torch's convolution cannot be exported to ONNX; that of a matrix product can.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PatchProjection(nn.Module):
    """Replaces ``convolution``, with the same parameters under the same names."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, hidden, height / patch height, width / patch width)."""
        hidden, channels, high, wide = self.weight.shape
        rows, columns = pixels.shape[2] // high, pixels.shape[3] // wide
        grid = pixels.reshape(-1, channels, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5)
        patches = grid.reshape(-1, rows * columns, channels * high * wide)
        projected = functional.linear(patches, self.weight.reshape(hidden, -1), self.bias)  # (batch, patches, hidden)
        return projected.transpose(1, 2).reshape(-1, hidden, rows, columns)


def replace_patch_convolutions(module: nn.Module) -> None:
    """Replace every convolution that cuts its input into patches by a :class:`PatchProjection`."""
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Conv2d) and _cuts_patches(part):
            module.set_submodule(name, PatchProjection(part))


def _cuts_patches(part: nn.Conv2d) -> bool:
    return part.stride == part.kernel_size and part.groups == 1 and part.padding in {(0, 0), "valid"}
