"""The README of ``edge_sdk/elastic``: its session prints what it says, its row makes a model of one's own elastic."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import edge_sdk.elastic
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.permutation import LayerOrder, permute
from coordinator.models.torch_modules import torch_module
from edge_sdk.elastic import families
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Adapters, Role, Submodel
from edge_sdk.errors import UnsupportedArchitectureError
from tests.support.masking import drop_layers, masked
from tests.support.pocket_model import PocketConfig, PocketModel
from tests.support.tiny_models import LABELS, randomise, tiny_inputs, tiny_tokenizer

README = Path(edge_sdk.elastic.__file__).parent / "README.md"
TOLERANCE = 1e-13


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = PocketModel(PocketConfig(num_labels=len(LABELS)))
    randomise(model)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def pocket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Foundation:
    """The model in float64, made elastic by the README's own code."""
    monkeypatch.setattr(families, "_TABLE", dict(families._TABLE))
    (row,) = re.findall(r"```python\n(from .*?)```", README.read_text(), re.DOTALL)
    exec(row, {})  # noqa: S102
    foundation = load_foundation(folder, LABELS, seed=0, adapters=Adapters(rank=3, targets=tuple(Role)))
    random = np.random.default_rng(6)
    parameters = {name: values.astype(np.float64) for name, values in foundation.parameters.items()}
    adapted = {name: random.standard_normal(values.shape) for name, values in parameters.items() if ".lora_" in name}
    return replace(foundation, parameters=parameters | adapted)


def logits(module: torch.nn.Module, pocket: Foundation) -> Array:
    with torch.no_grad():
        answer: Array = module.double()(**tiny_inputs(pocket)).logits.numpy()
    return answer


def distance(found: Array, expected: Array) -> float:
    """The largest difference, of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_session_of_the_readme_prints_what_it_says() -> None:
    result = doctest.testfile(str(README), module_relative=False)

    assert result.attempted > 10
    assert result.failed == 0


def test_own_model_is_refused_by_name_before_its_row_is_registered(folder: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="'pocket'"):
        load_foundation(folder, LABELS, seed=0)


def test_sizes_of_an_own_model_are_read(pocket: Foundation) -> None:
    sizes = pocket.architecture

    assert (sizes.heads, sizes.group_size, sizes.head_size, sizes.ffn) == (3, 2, 4, 50)
    assert (sizes.layers, sizes.positions, sizes.vocabulary, sizes.adapter_rank) == (3, 66, 40, 3)


def test_permuted_own_model_equals_the_original(pocket: Foundation) -> None:
    random = np.random.default_rng(7)
    orders = [LayerOrder(random.permutation(3), random.permutation(50)) for _ in range(3)]
    parameters = permute(pocket.parameters, pocket.family, pocket.architecture, orders)
    moved = {name for name, values in parameters.items() if not np.array_equal(values, pocket.parameters[name])}

    assert "blocks.1.look.query.weight" in moved
    expected = logits(torch_module(pocket), pocket)
    assert distance(logits(torch_module(pocket, parameters=parameters), pocket), expected) <= TOLERANCE


@pytest.mark.parametrize("window", [(0, 0), (2, 40)])
def test_submodel_of_an_own_model_equals_it_masked(pocket: Foundation, window: tuple[int, int]) -> None:
    submodel = Submodel((0, 1, 2), (1, 2, 2), (20, 30, 11), 2, *window)
    cut = logits(torch_module(pocket, submodel), pocket)

    assert distance(cut, logits(torch_module(pocket, parameters=masked(pocket, submodel)), pocket)) <= TOLERANCE


def test_own_model_without_a_layer_equals_the_kept_ones(pocket: Foundation) -> None:
    submodel, whole = Submodel((0, 2), (3, 3), (50, 50), 3), torch_module(pocket)
    drop_layers(whole, pocket, submodel.layers)

    assert distance(logits(torch_module(pocket, submodel), pocket), logits(whole, pocket)) <= TOLERANCE
