"""A submodel as a Hugging Face module: the same architecture with fewer layers and narrower weights.

In transformers 5, attention views its projections as (batch, tokens, -1, head size), so the module of the full model
runs with narrower weights, too: submodels need no classes of their own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import init_empty_weights
from optimum.exporters.tasks import TasksManager
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.initialization import no_init_weights

from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Architecture, ModelTask, Submodel, TrainablePart
from edge_sdk.errors import UnsupportedArchitectureError
from edge_sdk.modules.adapters import ADAPTER_NAME, inject_adapters
from edge_sdk.modules.patches import replace_patch_convolutions
from edge_sdk.modules.sensor_transformer import SensorTransformer, SensorTransformerConfig
from edge_sdk.modules.widths import follow_widths

AutoConfig.register(SensorTransformerConfig.model_type, SensorTransformerConfig)
AutoModelForSequenceClassification.register(SensorTransformerConfig, SensorTransformer)
_TASK_NAMES = {ModelTask.TIME_SERIES_CLASSIFICATION: ModelTask.TEXT_CLASSIFICATION.value}  # where it is registered
_one_at_a_time = threading.RLock()  # transformers' switches for uninitialised weights affect the whole process


def auto_class(task: ModelTask, config: PreTrainedConfig) -> type[AutoModel]:
    """Transformers' auto class for models of ``task``.

    Raises ``UnsupportedArchitectureError`` for an encoder-decoder with any task but text-to-text, and for any other
    model with that task.
    """
    if config.is_encoder_decoder and task is not ModelTask.TEXT2TEXT_GENERATION:
        raise UnsupportedArchitectureError(
            f"{config.model_type} for {task.value} is not supported: an encoder-decoder writes one text for another; "
            "give examples with the columns source, target"
        )
    if task is ModelTask.TEXT2TEXT_GENERATION and not config.is_encoder_decoder:
        raise UnsupportedArchitectureError(
            f"{config.model_type} for {task.value} is not supported: it has no encoder and decoder; "
            "give examples with the column text alone"
        )
    return TasksManager.get_model_class_for_task(_TASK_NAMES.get(task, task.value))


def bare_module(config_json: bytes, architecture: Architecture, layers: tuple[int, ...]) -> nn.Module:
    """The model of ``config_json`` with only ``layers``, random weights of full width, and its adapters, if any.

    It is in eval mode, with eager attention and without a cache. Narrower parameters may be assigned, or passed by
    ``functional_call``; the module follows their sizes. Parameters that no device ever trains require no gradient.
    Raises ``UnsupportedArchitectureError``.
    """
    return _built(config_json, architecture, layers, architecture.adapter_rank)


def submodel_module(
    config_json: bytes, architecture: Architecture, submodel: Submodel, parameters: Mapping[str, Array]
) -> nn.Module:
    """The module of ``submodel`` with its ``parameters``, which are cut already and have full-model names.

    It shares their memory, and never allocates weights of full width. Otherwise as :func:`bare_module`.
    """
    with _one_at_a_time, init_empty_weights(include_buffers=False), no_init_weights():
        module = _built(config_json, architecture, submodel.layers, submodel.adapter_rank)
    module.tie_weights()  # weights on the meta device are not tied
    put_parameters(module, architecture, submodel, parameters)
    return module


def put_parameters(
    module: nn.Module, architecture: Architecture, submodel: Submodel, parameters: Mapping[str, Array]
) -> None:
    """Assign the submodel's ``parameters``, by their full-model names, to ``module``, which has its layers."""
    for own, before in list(module.named_parameters()):
        owner, _, leaf = own.rpartition(".")
        values = torch.from_numpy(parameters[full_name(own, architecture, submodel)])
        setattr(module.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=before.requires_grad))
    module.tie_weights()


def full_name(own: str, architecture: Architecture, submodel: Submodel) -> str:
    """The full-model name of the parameter ``own`` of a module that has only the submodel's layers."""
    family, kept = family_of(architecture.family), with_layers(architecture, submodel.layers)
    name = parameter_name(own)
    index = family.layer_index(name, kept)
    if index is None:
        return name
    layer = family.layer_prefix(submodel.layers[index], architecture)
    return layer + name.removeprefix(family.layer_prefix(index, kept))


def parameter_name(own: str) -> str:
    """The name of a module's parameter ``own`` without the parts that PEFT inserts."""
    own = own.replace(".base_layer.", ".")
    for kind in (".lora_A", ".lora_B", ".lora_magnitude_vector", ".ia3_l"):
        own = own.replace(f"{kind}.{ADAPTER_NAME}", kind)
    return own


def with_layers(architecture: Architecture, layers: tuple[int, ...]) -> Architecture:
    """The architecture of a module that has only ``layers``, counted from 0 in each stack."""
    encoder_layers = sum(layer < architecture.encoder_layers for layer in layers)
    return replace(architecture, layers=len(layers), encoder_layers=encoder_layers)


def _built(config_json: bytes, architecture: Architecture, layers: tuple[int, ...], rank: int) -> nn.Module:
    config = _config_with(json.loads(config_json), architecture, layers)
    with _one_at_a_time:
        module = auto_class(architecture.task, config).from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
        replace_patch_convolutions(module)
        kept = with_layers(architecture, layers)
        follow_widths(module, kept)
        inject_adapters(module, kept, rank)
    family = family_of(architecture.family)
    for own, parameter in module.named_parameters():
        parameter.requires_grad_(family.is_trainable(parameter_name(own), TrainablePart.ALL))
    return module.eval()


def _config_with(settings: dict[str, object], architecture: Architecture, layers: tuple[int, ...]) -> PreTrainedConfig:
    config = AutoConfig.for_model(**settings)
    config.architectures = config.architectures or []  # transformers reads the list where a task has two classes
    config.use_cache = False
    kept = with_layers(architecture, layers)
    config.num_hidden_layers = len(kept.stacks[0])
    if config.is_encoder_decoder:
        config.num_decoder_layers = len(kept.stacks[1])
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    return config
