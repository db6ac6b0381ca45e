"""Reads the settings in a Hugging Face folder, and checks that its weights fit them.

Transformers fills what a checkpoint lacks, or has in another size, with random numbers. Only a new task head may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from edge_sdk.elastic.families import Family
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ModelFormatError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_FLOATS = {"F64", "F32", "F16", "BF16"}
_NAMED = 3  # parameters that an error names


def read_settings(folder: Path) -> dict[str, object]:
    """``config.json`` of a Hugging Face folder; ``ModelFormatError`` where it is missing or no JSON object."""
    path = folder / "config.json"
    try:
        if not path.is_file():
            raise ModelFormatError(f"{path} does not exist; use a folder that Hugging Face's save_pretrained wrote")
        settings = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read ({error.strerror}); use another folder") from error
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not a JSON object ({error}); save the model again") from error
    if not isinstance(settings, dict):
        raise ModelFormatError(f"{path} is not a JSON object but a {type(settings).__name__}; save the model again")
    return settings


def check_files(folder: Path) -> None:
    """Raise ``ModelFormatError`` where weights are quantised, or lie in no safetensors file: pickles are never read.

    ``UnsupportedArchitectureError`` where a layer computes by its number, which is another in a submodel.
    """
    settings = read_settings(folder)
    if settings.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedArchitectureError(
            f"{folder}: scale_attn_by_inverse_layer_idx is not supported: attention depends on a layer's number, "
            "which a submodel changes; use a model without it"
        )
    if quantised := settings.get("quantization_config"):
        method = quantised.get("quant_method", "unnamed") if isinstance(quantised, dict) else quantised
        raise ModelFormatError(f"{folder} is quantised ({method}) and cannot be trained; use its float version")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weights"
        raise ModelFormatError(
            f"{folder} holds {found}, not model.safetensors; convert it: load it with transformers where you trust it, "
            "then save_pretrained"
        )
    for path in files:
        for name, kind in _types_in(path).items():
            if name.endswith("weight") and kind not in _FLOATS:
                raise ModelFormatError(
                    f"{path}: {name} is quantised ({kind}) and cannot be trained; use its float version"
                )


def check_counts(config: PreTrainedConfig, folder: Path) -> None:
    """Raise ``ModelFormatError`` where there are no heads, or more layers than weights: building them takes hours."""
    weights = sum(len(_types_in(path)) for path in folder.glob("*.safetensors"))
    for setting in ("num_hidden_layers", "num_decoder_layers"):
        layers = getattr(config, setting, None)
        if layers is not None and layers > weights:
            raise ModelFormatError(
                f"{folder}: {setting} is {layers} by config.json, and there are {weights} weights; restore the "
                "config.json that belongs to the weights"
            )
    if config.num_attention_heads < 1:
        raise ModelFormatError(f"{folder}: config.json has {config.num_attention_heads} attention heads; restore it")


def _types_in(path: Path) -> dict[str, str]:
    """The type of each tensor in a safetensors file."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(path, framework="numpy") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ModelFormatError(f"{path} cannot be loaded: {error}; copy it again") from error


class LoadInfo(TypedDict):
    """What ``from_pretrained(output_loading_info=True)`` returns beside the model.

    ``mismatched_keys`` are names with the shape in the checkpoint and the shape by ``config.json``.
    """

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]]


def check_loaded(info: LoadInfo, folder: Path, family: Family, task: ModelTask) -> None:
    """Raise ``ModelFormatError`` where more than a classifier's head is new, or layers were left out."""
    new_head = () if task.generates else family.head
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(new_head)):
        raise ModelFormatError(f"{folder} lacks {_listed(missing)}; use a complete copy")
    for name, saved, configured in sorted(info["mismatched_keys"]):
        if not name.startswith(new_head):
            raise ModelFormatError(
                f"{folder}: {name} is {tuple(saved)} in the weights but {tuple(configured)} by config.json; "
                "restore the config.json that belongs to the weights"
            )
    if extra := sorted(name for name in info["unexpected_keys"] if _is_layer(name, family)):
        raise ModelFormatError(f"{folder} holds {_listed(extra)}, for which config.json has no layer; restore it")


def check_ties(model: PreTrainedModel, folder: Path) -> None:
    """Raise ``ModelFormatError`` where ``config.json`` says that two weights are one, and the checkpoint holds two."""
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        one, other = model.get_parameter(target), model.get_parameter(source)
        if one is not other:
            difference = (one - other).abs().max().item()
            raise ModelFormatError(
                f"{folder}: {target} and {source} differ by {difference:.3g}, but config.json ties them; "
                "set tie_word_embeddings to false there"
            )


def check_finite(parameters: Mapping[str, Array], folder: Path) -> None:
    """Raise ``ModelFormatError`` that counts NaN and infinite values of the first parameter that has some."""
    for name, values in parameters.items():
        if not np.isfinite(values).all():
            nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            raise ModelFormatError(
                f"{folder}: {name} has {nan} NaN and {infinite} infinite values of {values.size}; use an intact copy"
            )


def _is_layer(name: str, family: Family) -> bool:
    """Whether a parameter belongs to some layer, with the base model's prefix or, as in its own checkpoint, without."""
    layers = [stack.layer.partition("{}")[0] for stack in family.stacks]
    bare = [prefix.partition(".")[2] for prefix in layers]
    return family.stack_index(name) is not None or name.startswith(tuple(prefix for prefix in bare if prefix))


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
