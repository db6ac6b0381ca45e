"""What is saved loads with the field's own libraries and computes the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from coordinator.models.compilation import _digest
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.permutation import LayerOrder, permute
from coordinator.models.saving import save_model
from coordinator.models.torch_modules import torch_module
from coordinator.models.versions import ModelVersion, Ordering, load_version, save_version
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, ModelTask, Role, TrainablePart
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.tiny_models import LABELS, save_tiny_model, tiny_inputs

TOLERANCE = 1e-5


def trained_version(foundation: Foundation, part: TrainablePart, blobs: BlobFolder) -> ModelVersion:
    """The foundation in a random order, with everything that ``part`` trains moved, as it comes back from the disk."""
    random, sizes = np.random.default_rng(7), foundation.architecture
    orders = [LayerOrder(random.permutation(sizes.heads), random.permutation(sizes.ffn)) for _ in range(sizes.layers)]
    parameters = {
        name: values + 0.1 * random.standard_normal(values.shape).astype(np.float32)
        if foundation.family.is_trainable(name, part)
        else values
        for name, values in permute(foundation.parameters, foundation.family, sizes, orders).items()
    }
    saved = save_version(blobs, 3, parameters, Ordering.of(orders, (0, 1, 2)), foundation.family, part)
    return load_version(blobs, 3, saved.blobs)


def logits(module: torch.nn.Module, foundation: Foundation) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(**tiny_inputs(foundation)).logits


def test_task_that_goes_on_from_a_saved_model_needs_no_new_templates(tmp_path: Path) -> None:
    """What a folder held before it got a head, as sentence encoders are published, makes no other model of it."""
    folder = save_tiny_model(tmp_path / "tiny", "bert", architectures=["BertModel"])
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["BertModel"]}))
    first = load_foundation(folder, LABELS, seed=0)
    save_model(first, trained_version(first, TrainablePart.ALL, BlobFolder(tmp_path / "blobs")), tmp_path / "saved")
    again = load_foundation(tmp_path / "saved", LABELS, seed=0)
    assert _digest(again) == _digest(first)


@pytest.mark.parametrize(
    ("family", "task"), [("bert", ModelTask.TEXT_CLASSIFICATION), ("gpt2", ModelTask.TEXT_GENERATION)]
)
def test_saved_model_loads_as_a_hugging_face_folder(tmp_path: Path, family: str, task: ModelTask) -> None:
    folder = save_tiny_model(tmp_path / "tiny", family, task=task)
    labels = () if task.generates else LABELS
    foundation = load_foundation(folder, labels, seed=0, task=task)
    version = trained_version(foundation, TrainablePart.NO_EMBEDDINGS, BlobFolder(tmp_path / "blobs"))

    save_model(foundation, version, tmp_path / "saved")
    again = load_foundation(tmp_path / "saved", labels, seed=1, task=task)

    expected = logits(torch_module(replace(foundation, parameters=version.parameters)), foundation)
    assert (logits(torch_module(again), foundation) - expected).abs().max() <= TOLERANCE
    assert again.tokenizer_json == foundation.tokenizer_json


@pytest.mark.parametrize("method", list(AdapterMethod))
@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(family, marks=pytest.mark.long) for family in ("gpt2", "llama"))]
)
def test_saved_adapters_load_with_peft_onto_the_model_that_the_task_began_with(
    tmp_path: Path, family: str, method: AdapterMethod
) -> None:
    folder = save_tiny_model(tmp_path / "tiny", family)
    adapters = Adapters(rank=4, targets=tuple(Role), method=method)
    foundation = load_foundation(folder, LABELS, seed=0, adapters=adapters)
    version = trained_version(foundation, TrainablePart.ADAPTERS, BlobFolder(tmp_path / "blobs"))

    save_model(foundation, version, tmp_path / "saved")
    base = torch_module(load_foundation(folder, LABELS, seed=1))
    again = PeftModel.from_pretrained(base, tmp_path / "saved")

    expected = logits(torch_module(replace(foundation, parameters=version.parameters)), foundation)
    plain = logits(torch_module(load_foundation(folder, LABELS, seed=1)), foundation)
    assert (logits(again, foundation) - expected).abs().max() <= TOLERANCE
    assert (plain - expected).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("method", [AdapterMethod.LORA, AdapterMethod.DORA])
def test_stacked_adapters_are_saved_inside_the_whole_model(tmp_path: Path, method: AdapterMethod) -> None:
    """What they are added to has moved too, so they would not fit the model that the task began with."""
    adapters = Adapters(rank=4, method=method)
    foundation = load_foundation(save_tiny_model(tmp_path / "tiny", "bert"), LABELS, seed=0, adapters=adapters)
    version = trained_version(foundation, TrainablePart.NO_EMBEDDINGS, BlobFolder(tmp_path / "blobs"))

    save_model(foundation, version, tmp_path / "saved", is_stacked=True)
    again = load_foundation(tmp_path / "saved", LABELS, seed=1)

    expected = logits(torch_module(replace(foundation, parameters=version.parameters)), foundation)
    assert (logits(torch_module(again), again) - expected).abs().max() <= TOLERANCE
