"""Makes modules follow the width of their weights, where Hugging Face sets a width once from the configuration.

Each time such a module runs, its attribute is set again from its current weight, whose size may be symbolic.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import nn
from transformers.pytorch_utils import Conv1D

from edge_sdk.elastic.families import Axis, Stack, family_of
from edge_sdk.elastic.submodel import Architecture


def follow_widths(module: nn.Module, architecture: Architecture) -> None:
    """Add the hooks to ``module``, of ``architecture``, in place. Call it before adapters are added."""
    family = family_of(architecture.family)
    for stack, layers in zip(family.stacks, architecture.stacks, strict=True):
        for index in range(len(layers)):
            layer = module.get_submodule(stack.layer.format(index).rstrip("."))
            _follow_in(layer, stack, architecture, out=1 if family.is_transposed else 0)
    for part in module.modules():
        if isinstance(part, Conv1D):
            part.register_forward_pre_hook(_Follow("nf", "", 1, Fraction(1)))


def _follow_in(layer: nn.Module, stack: Stack, architecture: Architecture, *, out: int) -> None:
    for path, axis in stack.widths:
        owner, _, attribute = path.rpartition(".")
        name, measured = _measured(stack, owner, axis)
        share = Fraction(axis.entries(architecture), measured.blocks * measured.entries(architecture))
        layer.get_submodule(owner).register_forward_pre_hook(_Follow(attribute, name, out, share))


def _measured(stack: Stack, owner: str, axis: Axis) -> tuple[str, Axis]:
    """The first module in ``owner`` whose outputs count the unit of ``axis``: its name there, and its outputs' axis."""
    return next(
        (path.removeprefix(f"{owner}."), found)
        for path, found in stack.outputs.items()
        if path.startswith(f"{owner}.") and found.unit is axis.unit
    )


@dataclass(frozen=True, slots=True)
class _Follow:
    """A forward pre-hook: ``attribute`` becomes ``share`` of the size of ``source``'s weight along its ``out`` axis."""

    attribute: str
    source: str
    out: int
    share: Fraction

    def __call__(self, module: nn.Module, _: object) -> None:
        """Set the attribute, before ``module`` runs."""
        size = module.get_submodule(self.source).weight.shape[self.out]
        setattr(module, self.attribute, size * self.share.numerator // self.share.denominator)
