"""What must hold for every family and task, on tiny random models in float64.

A permuted model computes what the original does, a submodel what the full model does whose other heads, neurons, ranks
and layers are switched off, both within 1e-12, which is rounding; and what was cut out can be put back exactly.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.permutation import LayerOrder, inverse, permute
from coordinator.models.torch_modules import torch_module
from edge_sdk.elastic.slicing import Array, extract, full_shapes, scatter, shapes_of, slices_of
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, ModelTask, Role, Submodel, full
from edge_sdk.errors import ConfigurationError
from tests.support.masking import drop_layers, masked
from tests.support.tiny_models import ALL_FAMILIES, LABELS, TASKS, random_orders, save_tiny_model, tiny_inputs

TOLERANCE = 1e-12
SEED = 5
TORCH_ONLY = [
    (family, method) for family in ("bert", "gpt2", "t5") for method in (AdapterMethod.DORA, AdapterMethod.IA3)
]
UNLIKE = ("bert", "gpt2", "llama", "t5", "vit")
"""Whose modules, where LoRA's factors go, are laid out unlike each other's."""
CASES = [
    *((family, TASKS[family][0], None) for family in ALL_FAMILIES),
    *(
        pytest.param((family, task, None), marks=pytest.mark.long)
        for family in ALL_FAMILIES
        for task in TASKS[family][1:]
    ),
    *(
        pytest.param((family, TASKS[family][0], AdapterMethod.LORA), marks=() if family in UNLIKE else pytest.mark.long)
        for family in ALL_FAMILIES
    ),
    *((family, TASKS[family][0], method) for family, method in TORCH_ONLY),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of products as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def tiny_of(family: str, task: ModelTask, method: AdapterMethod | None) -> Foundation:
    """A foundation in float64; adapters on every module, with random values instead of a start that does nothing."""
    adapters = None if method is None else Adapters(rank=4, targets=tuple(Role), method=method)
    labels = () if task.generates else LABELS
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder), family, task=task)
        foundation = load_foundation(model, labels, seed=0, task=task, adapters=adapters)
    random = np.random.default_rng(SEED)
    parameters = {name: values.astype(np.float64) for name, values in foundation.parameters.items()}
    for name, values in parameters.items():
        if ".lora_" in name or ".ia3_" in name:
            parameters[name] = values + 0.3 * random.standard_normal(values.shape)
    return replace(foundation, parameters=parameters)


@functools.cache
def original_of(family: str, task: ModelTask, method: AdapterMethod | None) -> torch.Tensor:
    return logits(tiny_of(family, task, method))


@pytest.fixture(params=CASES, ids=lambda case: "-".join(str(getattr(part, "value", part)) for part in case))
def case(request: pytest.FixtureRequest) -> tuple[str, ModelTask, AdapterMethod | None]:
    return request.param


@pytest.fixture
def tiny(case: tuple[str, ModelTask, AdapterMethod | None]) -> Foundation:
    return tiny_of(*case)


@pytest.fixture
def original(case: tuple[str, ModelTask, AdapterMethod | None]) -> torch.Tensor:
    """What the foundation answers."""
    return original_of(*case)


def logits(
    foundation: Foundation, submodel: Submodel | None = None, parameters: dict[str, Array] | None = None
) -> torch.Tensor:
    return run(torch_module(foundation, submodel, parameters), foundation)


def run(module: torch.nn.Module, foundation: Foundation) -> torch.Tensor:
    with torch.no_grad():
        return module.double()(**tiny_inputs(foundation)).logits


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    assert torch.isfinite(one).all()
    return (one - other).abs().max().item()


def permuted(foundation: Foundation, orders: list[LayerOrder]) -> dict[str, Array]:
    return permute(foundation.parameters, foundation.family, foundation.architecture, orders)


def uneven(foundation: Foundation) -> Submodel:
    """Every layer, each with widths of its own; the heads of an encoder-decoder's stack are equal."""
    sizes = foundation.architecture
    layers = tuple(range(sizes.layers))
    heads = [1 + layer % (sizes.heads - 1) for layer in layers]
    if sizes.encoder_layers:
        heads = [2 if layer in sizes.stacks[0] else 3 for layer in layers]
    return Submodel(layers, tuple(heads), tuple(7 + 11 * layer % 40 for layer in layers), min(3, sizes.adapter_rank))


def without_first_layers(foundation: Foundation) -> Submodel:
    sizes = foundation.architecture
    layers = tuple(layer for stack in sizes.stacks for layer in stack[1:])
    return Submodel(layers, (sizes.heads,) * len(layers), (sizes.ffn,) * len(layers), sizes.adapter_rank)


def test_permuted_model_equals_the_original(tiny: Foundation, original: torch.Tensor) -> None:
    parameters = permuted(tiny, random_orders(tiny, SEED))

    assert distance(logits(tiny, parameters=parameters), original) <= TOLERANCE
    assert {name for name, values in parameters.items() if not np.array_equal(values, tiny.parameters[name])} == {
        name
        for name in tiny.parameters
        if any(axis is not None and axis.unit.value != "rank" for axis in tiny.family.axes(name))
    }


def test_inverse_order_restores_the_parameters(tiny: Foundation) -> None:
    orders = random_orders(tiny, SEED)
    moved = replace(tiny, parameters=permuted(tiny, orders))

    np.testing.assert_equal(permuted(moved, list(inverse(orders))), tiny.parameters)


@pytest.mark.parametrize("window", [(0, 0), (2, 45)], ids=["prefix", "window"])
def test_submodel_equals_the_full_model_masked(
    tiny: Foundation, original: torch.Tensor, window: tuple[int, int]
) -> None:
    submodel = replace(uneven(tiny), first_head=window[0], first_neuron=window[1])
    cut = logits(tiny, submodel)

    assert distance(cut, logits(tiny, parameters=masked(tiny, submodel))) <= TOLERANCE
    assert distance(cut, original) > 1e-3


def test_submodel_equals_the_full_model_without_the_dropped_layers(tiny: Foundation, original: torch.Tensor) -> None:
    submodel, whole = without_first_layers(tiny), torch_module(tiny)
    drop_layers(whole, tiny, submodel.layers)
    cut = logits(tiny, submodel)

    assert distance(cut, run(whole, tiny)) <= TOLERANCE
    assert distance(cut, original) > 1e-3


@pytest.mark.parametrize("choose", [full, uneven, without_first_layers])
def test_scatter_of_an_untouched_submodel_restores_the_model(tiny: Foundation, choose: object) -> None:
    submodel = full(tiny.architecture) if choose is full else choose(tiny)
    shapes = {name: values.shape for name, values in tiny.parameters.items()}
    slices = slices_of(submodel, tiny.architecture, tiny.family, shapes)
    assert full_shapes(shapes_of(slices), tiny.architecture, tiny.family) == {name: shapes[name] for name in slices}
    part = extract(tiny.parameters, slices)
    spoilt = {name: values.copy() for name, values in tiny.parameters.items()}
    for name, region in slices.items():
        region.put(spoilt[name], np.full(region.shape, np.nan))

    assert any(np.isnan(values).any() for values in spoilt.values())
    scatter(spoilt, slices, part)
    np.testing.assert_equal(spoilt, tiny.parameters)


def test_layers_that_share_a_position_bias_must_share_their_order() -> None:
    foundation = tiny_of("t5", ModelTask.TEXT2TEXT_GENERATION, None)
    orders = random_orders(foundation, SEED)
    orders[1] = LayerOrder(orders[1].heads[::-1].copy(), orders[1].ffn)

    with pytest.raises(ConfigurationError, match="layers 0 and 1 order their heads differently"):
        permuted(foundation, orders)
