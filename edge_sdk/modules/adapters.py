"""Adds PEFT's adapters to a module."""

from __future__ import annotations

from collections.abc import Iterable

from peft import IA3Config, LoraConfig, PeftConfig, inject_adapter_in_model
from torch import nn

from edge_sdk.elastic.families import Family, family_of
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, Architecture, Role

ADAPTER_NAME = "default"
"""PEFT's name for a model's only set of adapters, which is part of their parameters' names."""


def inject_adapters(module: nn.Module, architecture: Architecture, rank: int) -> None:
    """Add the architecture's adapters, if it has any, to ``module`` in place, with ``rank``."""
    if architecture.adapters is not None:
        inject_adapter_in_model(adapter_config(module, architecture, architecture.adapters, rank), module, ADAPTER_NAME)


def adapter_config(module: nn.Module, architecture: Architecture, adapters: Adapters, rank: int) -> PeftConfig:
    """PEFT's configuration of ``adapters`` in ``module``, which may have them already; IA3 ignores ``rank``."""
    family = family_of(architecture.family)
    targets = _targets(module, architecture, adapters.targets)
    if adapters.method is not AdapterMethod.IA3:
        return _lora(adapters, targets, family, rank)
    down = set(_targets(module, architecture, (Role.DOWN,)))
    return IA3Config(
        target_modules=targets,
        feedforward_modules=[name for name in targets if name in down],
        fan_in_fan_out=family.is_transposed,
    )


def _lora(adapters: Adapters, targets: list[str], family: Family, rank: int) -> LoraConfig:
    """LoRA's or DoRA's configuration. Dropout stays off, so that a step computes the same on every runtime."""
    return LoraConfig(
        r=rank,
        lora_alpha=adapters.scale * rank,
        target_modules=targets,
        fan_in_fan_out=family.is_transposed,
        use_dora=adapters.method is AdapterMethod.DORA,
    )


def _targets(module: nn.Module, architecture: Architecture, roles: Iterable[Role]) -> list[str]:
    """The names of the modules that have one of ``roles``, each once, in the order of layers."""
    family, present = family_of(architecture.family), {name for name, _ in module.named_modules()}
    names = (
        stack.layer.format(index) + path
        for stack, layers in zip(family.stacks, architecture.stacks, strict=True)
        for index in range(len(layers))
        for role in roles
        for path in stack.modules(role)
    )
    return list(dict.fromkeys(name for name in names if name in present))
