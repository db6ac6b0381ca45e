"""A foundation model in memory: parameters as numpy arrays, and the two JSON files that give them a meaning."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.elastic.families import Family, family_of
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Architecture
from edge_sdk.errors import ModelFormatError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Foundation:
    """A sequence classifier, whole: what version 0 of a run is made of.

    ``parameters`` are float32 under their state-dict names; ``labels`` name the classes in the order of the logits;
    ``config_json`` and ``tokenizer_json`` are Hugging Face's ``config.json`` and ``tokenizer.json``.
    """

    architecture: Architecture
    family: Family
    parameters: dict[str, Array]
    labels: tuple[str, ...]
    config_json: bytes
    tokenizer_json: bytes


def load_foundation(folder: Path, labels: Sequence[str], seed: int) -> Foundation:
    """Read the Hugging Face model in ``folder`` and give it a head of ``len(labels)`` classes; nothing is downloaded.

    ``seed`` fixes the head's random start. Raises ``ModelFormatError`` for a folder that is missing or incomplete or
    holds weights that are not finite, and ``UnsupportedArchitectureError`` for a family without a row in the table.
    """
    family = family_of(model_type_of(folder))
    model = _load_model(folder, labels, seed)
    parameters = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    _check_finite(parameters, folder)
    return Foundation(
        architecture=_architecture(model, family, parameters),
        family=family,
        parameters=parameters,
        labels=tuple(labels),
        config_json=_portable_config(model),
        tokenizer_json=_tokenizer_json(folder),
    )


def model_type_of(folder: Path) -> str:
    """The ``model_type`` of a Hugging Face folder; ``ModelFormatError`` where it names none."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelFormatError(f"{path} does not exist; name a folder that Hugging Face's save_pretrained wrote")
    try:
        model_type = json.loads(path.read_bytes()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelFormatError(f"{path} is not a JSON object ({error}); save the model again") from error
    if not isinstance(model_type, str):
        raise ModelFormatError(f"{path} has no model_type; save the model again with transformers 5")
    return model_type


def _load_model(folder: Path, labels: Sequence[str], seed: int) -> PreTrainedModel:
    import torch  # noqa: PLC0415 - seconds of import, after the folder was found to be worth it
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers import AutoModelForSequenceClassification  # noqa: PLC0415

    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=len(labels),
                attn_implementation="eager",
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # a head for another number of classes is replaced
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise ModelFormatError(f"{folder} cannot be loaded: {error}; save the model again") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no report of the head that is new on purpose; both as before afterwards."""
    from transformers.utils import logging as reports  # noqa: PLC0415

    bars, verbosity = reports.is_progress_bar_enabled(), reports.get_verbosity()
    reports.disable_progress_bar()
    reports.set_verbosity_error()
    try:
        yield
    finally:
        reports.set_verbosity(verbosity)
        if bars:
            reports.enable_progress_bar()


def _check_finite(parameters: dict[str, Array], folder: Path) -> None:
    for name, values in parameters.items():
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise ModelFormatError(f"{folder}: {name} has {count} values that are not finite; use an intact copy")


def _architecture(model: PreTrainedModel, family: Family, parameters: dict[str, Array]) -> Architecture:
    from optimum.utils import NormalizedConfigManager  # noqa: PLC0415

    config = NormalizedConfigManager.get_normalized_config_class(family.name)(model.config)
    ffn, hidden = parameters[f"{family.layer.format(0)}{family.up}.weight"].shape
    return Architecture(
        family=family.name,
        layers=config.num_layers,
        heads=config.num_attention_heads,
        head_size=hidden // config.num_attention_heads,
        ffn=ffn,
        hidden=hidden,
        vocabulary=config.vocab_size,
        positions=_usable_positions(model),
        labels=model.config.num_labels,
    )


def _usable_positions(model: PreTrainedModel) -> int:
    """The longest input in tokens; RoBERTa counts positions from the padding index + 1 on and loses the rows before."""
    table = next(module for name, module in model.named_modules() if name.endswith(".position_embeddings"))
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def _portable_config(model: PreTrainedModel) -> bytes:
    settings = model.config.to_dict()
    for local in ("_name_or_path", "transformers_version"):
        settings.pop(local, None)
    return json.dumps(settings, sort_keys=True).encode()


def _tokenizer_json(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    if path.is_file():
        return path.read_bytes()
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{folder} has no tokenizer.json and none can be made: {error}") from error
    if tokenizer.vocab_size <= len(
        tokenizer.all_special_ids
    ):  # transformers makes an empty one where files are missing
        raise ModelFormatError(
            f"{folder} has neither tokenizer.json nor a vocabulary; save the model's tokenizer there"
        )
    return tokenizer.backend_tokenizer.to_str().encode()
