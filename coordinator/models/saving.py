"""Saves a version for other tools: as a Hugging Face folder, or as a PEFT folder of adapters.

Heads and neurons go back to where they were before version 0 was permuted, so what is saved fits the model that the
task began with.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import TaskType
from safetensors.torch import save_file

from coordinator.models.foundation import Foundation, quiet_transformers
from coordinator.models.merging import merged, without_adapters
from coordinator.models.permutation import inverse, permute
from coordinator.models.torch_modules import torch_module
from coordinator.models.versions import ModelVersion
from edge_sdk.disk import disk_errors
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Adapters, ModelTask, TrainablePart
from edge_sdk.modules.adapters import adapter_config

_MAGNITUDE = (".lora_magnitude_vector.weight", ".lora_magnitude_vector")  # in PEFT's modules, and in its files
_PEFT_TASKS = {
    ModelTask.TEXT_CLASSIFICATION: TaskType.SEQ_CLS,
    ModelTask.TOKEN_CLASSIFICATION: TaskType.TOKEN_CLS,
    ModelTask.TEXT_GENERATION: TaskType.CAUSAL_LM,
    ModelTask.TEXT2TEXT_GENERATION: TaskType.SEQ_2_SEQ_LM,
    ModelTask.IMAGE_CLASSIFICATION: None,
    ModelTask.TIME_SERIES_CLASSIFICATION: None,
}


def save_model(foundation: Foundation, version: ModelVersion, folder: Path, *, is_stacked: bool = False) -> None:
    """Write a folder for ``from_pretrained``: the whole model, or, where it has adapters, for ``PeftModel``'s.

    Adapters that ``stack`` merges do not fit the model that the task began with: they are saved inside the whole.
    Raises ``DiskFullError`` or ``StorageError``.
    """
    parameters, adapters = restored(foundation, version), foundation.architecture.adapters
    with quiet_transformers(), disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if adapters is not None and not is_stacked:
            _save_adapters(foundation, parameters, adapters, folder)
            return
        whole = merged(parameters, foundation.architecture)
        torch_module(without_adapters(foundation), parameters=whole).save_pretrained(folder)
        if foundation.tokenizer_json:
            (folder / "tokenizer.json").write_bytes(foundation.tokenizer_json)


def restored(foundation: Foundation, version: ModelVersion) -> dict[str, Array]:
    """The version's parameters in the order of the model that the task began with."""
    orders = inverse(version.ordering.orders())
    return permute(version.parameters, foundation.family, foundation.architecture, orders)


def _save_adapters(foundation: Foundation, parameters: dict[str, Array], adapters: Adapters, folder: Path) -> None:
    """Adapters and head; the names are PEFT's own but for the prefix of the model that wraps another."""
    module = torch_module(foundation, parameters=parameters)
    config = adapter_config(module, foundation.architecture, adapters, foundation.architecture.adapter_rank)
    config.task_type = _PEFT_TASKS[foundation.architecture.task]
    config.modules_to_save = sorted({prefix.split(".")[-2] for prefix in _head_prefixes(foundation)})
    config.save_pretrained(str(folder))
    trained = {
        f"base_model.model.{name}".replace(*_MAGNITUDE): torch.from_numpy(values)
        for name, values in parameters.items()
        if foundation.family.is_trainable(name, TrainablePart.ADAPTERS)
    }
    save_file(trained, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _head_prefixes(foundation: Foundation) -> set[str]:
    """Those of the family's that this model has: its head depends on the task."""
    return {
        prefix for prefix in foundation.family.head if any(name.startswith(prefix) for name in foundation.parameters)
    }
