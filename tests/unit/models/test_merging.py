"""Adapters merged into weights: the same function, on tiny random models in float64, within 1e-12.

And where cutting and merging may change places: everywhere but where DoRA's rows are cut.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.merging import merged, without_adapters
from coordinator.models.torch_modules import torch_module
from edge_sdk.elastic.families import is_adapter
from edge_sdk.elastic.slicing import Array, extract, slices_of
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, Role, Submodel
from edge_sdk.modules.building import submodel_module
from tests.support.tiny_models import LABELS, TASKS, save_tiny_model, tiny_inputs

TOLERANCE = 1e-12
SEED = 11
FAMILIES = ("bert", "gpt2", "llama", "t5")
ROWS = (Role.Q, Role.K, Role.V, Role.UP)
EVERYWHERE = tuple(Role)
CUTS_ALIKE = [
    (AdapterMethod.LORA, EVERYWHERE),
    (AdapterMethod.DORA, ROWS),
    (AdapterMethod.IA3, EVERYWHERE),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of products as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def adapted(family: str, method: AdapterMethod, targets: tuple[Role, ...]) -> Foundation:
    """In float64, with adapters that do something."""
    print(f"seed {SEED}")
    task, random = TASKS[family][0], np.random.default_rng(SEED)
    labels = () if task.generates else LABELS
    adapters = Adapters(rank=4, targets=targets, method=method)
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder), family, task=task)
        foundation = load_foundation(model, labels, seed=0, task=task, adapters=adapters)
    return replace(
        foundation,
        parameters={
            name: values + 0.3 * is_adapter(name) * random.standard_normal(values.shape)
            for name, values in foundation.parameters.items()
        },
    )


def narrow(foundation: Foundation, *, rank: int) -> Submodel:
    """Half of every stack's heads, some neurons, without the first layer where there is one stack."""
    sizes = foundation.architecture
    layers = tuple(range(sizes.layers)) if sizes.encoder_layers else tuple(range(1, sizes.layers))
    count = len(layers)
    return Submodel(
        layers, (2,) * count, tuple(10 + 7 * index for index in range(count)), min(rank, sizes.adapter_rank)
    )


def cut(foundation: Foundation, submodel: Submodel, parameters: dict[str, Array] | None = None) -> dict[str, Array]:
    parameters = foundation.parameters if parameters is None else parameters
    shapes = {name: values.shape for name, values in parameters.items()}
    return extract(parameters, slices_of(submodel, foundation.architecture, foundation.family, shapes))


def answers(module: torch.nn.Module, foundation: Foundation) -> torch.Tensor:
    with torch.no_grad():
        return module.double()(**tiny_inputs(foundation)).logits


@pytest.mark.parametrize("method", list(AdapterMethod))
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_submodel_computes_what_the_adapted_one_does(family: str, method: AdapterMethod) -> None:
    foundation = adapted(family, method, EVERYWHERE)
    submodel = narrow(foundation, rank=3)
    plain = without_adapters(foundation)
    part = merged(cut(foundation, submodel), foundation.architecture)
    module = submodel_module(plain.config_json, plain.architecture, replace(submodel, adapter_rank=0), part)

    found, expected = answers(module, plain), answers(torch_module(foundation, submodel), foundation)
    unadapted = answers(torch_module(plain, replace(submodel, adapter_rank=0)), plain)
    assert (found - expected).abs().max() <= TOLERANCE
    assert (unadapted - expected).abs().max() > 1e-2


def largest_difference(foundation: Foundation) -> float:
    """Between what is cut first and merged then, and the other way round, at the full rank."""
    submodel, plain = narrow(foundation, rank=4), without_adapters(foundation)
    first = merged(cut(foundation, submodel), foundation.architecture)
    whole = merged(foundation.parameters, foundation.architecture)
    then = cut(plain, replace(submodel, adapter_rank=0), whole)
    assert first.keys() == then.keys()
    return max(float(np.abs(first[name] - then[name]).max()) for name in first)


@pytest.mark.parametrize(("method", "targets"), CUTS_ALIKE)
@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_and_merging_may_change_places(family: str, method: AdapterMethod, targets: tuple[Role, ...]) -> None:
    assert largest_difference(adapted(family, method, targets)) <= TOLERANCE


@pytest.mark.parametrize("target", [Role.O, Role.DOWN])
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_inputs_change_what_dora_divides_by(family: str, target: Role) -> None:
    """The control of the test above, and why no task may ask for it."""
    foundation = adapted(family, AdapterMethod.DORA, (target,))
    assert largest_difference(foundation) > 1e-2


@pytest.mark.parametrize("method", list(AdapterMethod))
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_adapters_that_were_just_added_change_no_weight(tmp_path: Path, family: str, method: AdapterMethod) -> None:
    adapters = Adapters.of(method, 4)
    foundation = load_foundation(save_tiny_model(tmp_path, family), LABELS, seed=0, adapters=adapters)
    part, plain = merged(foundation.parameters, foundation.architecture), without_adapters(foundation).parameters

    assert part.keys() == plain.keys()
    for name, values in part.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, plain[name], rtol=2e-6, atol=0)
