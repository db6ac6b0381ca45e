"""A foundation model in memory: its parameters as numpy arrays, its configuration and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.models.checkpoint import (
    check_counts,
    check_files,
    check_finite,
    check_loaded,
    check_ties,
    read_settings,
)
from edge_sdk.elastic.families import Family, family_of
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Adapters, Architecture, ModelTask
from edge_sdk.errors import ModelFormatError
from edge_sdk.protocol.graphs import TEXT_TASKS
from edge_sdk.text import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RELATIVE_POSITIONS = 512  # of a model that has no table of positions: what T5 was trained on, arXiv 1910.10683 § 3.1.2

_UNFIT = (TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, MemoryError)
"""What transformers and torch raise where a configuration has values of other types or sizes than they take."""
_MAX_LETTERS = 300  # of a library's reason


@dataclass(frozen=True, slots=True)
class Foundation:
    """A whole model, from which version 0 of a task is made.

    ``parameters`` are float32 under their state-dict names, adapters under ``<module>.lora_A.weight`` and the like;
    ``labels`` name the classes in the order of the logits, none where text is generated. ``config_json`` and
    ``tokenizer_json`` are Hugging Face's ``config.json`` and ``tokenizer.json``, the latter empty without texts.
    """

    architecture: Architecture
    family: Family
    parameters: dict[str, Array]
    labels: tuple[str, ...]
    config_json: bytes
    tokenizer_json: bytes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The architecture's."""
        return self.architecture.input_shape


def load_foundation(
    folder: Path,
    labels: Sequence[str],
    seed: int,
    *,
    task: ModelTask = ModelTask.TEXT_CLASSIFICATION,
    adapters: Adapters | None = None,
) -> Foundation:
    """Read the Hugging Face model in ``folder``, give it a head of ``len(labels)`` classes, and ``adapters`` if asked.

    ``seed`` fixes the random start of what is new. Nothing is downloaded, no pickle is read. Raises
    ``ModelFormatError`` for a folder that is missing, incomplete or quantised, or whose weights are not finite or not
    what its configuration says, and ``UnsupportedArchitectureError`` for a family without a row in the table.
    """
    family = family_of(model_type_of(folder))
    check_files(folder)
    import torch  # noqa: PLC0415 - seconds of import, after the folder was found to be worth it

    tokenizer_json = _tokenizer_json(folder) if task in TEXT_TASKS else b""
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load_model(folder, family, task, len(labels))
        if task is ModelTask.TEXT_CLASSIFICATION:
            _mark_padding(model, tokenizer_json)
        if task is ModelTask.TEXT2TEXT_GENERATION:
            _check_start(model, tokenizer_json, folder)
        config_json = _portable_config(model)
        architecture = _architecture(model, family, task, adapters)
        parameters = _parameters(model, architecture)
    check_finite(parameters, folder)
    return Foundation(architecture, family, parameters, tuple(labels), config_json, tokenizer_json)


def model_type_of(folder: Path) -> str:
    """The ``model_type`` of a Hugging Face folder; ``ModelFormatError`` where it names none."""
    model_type = read_settings(folder).get("model_type")
    if not isinstance(model_type, str):
        raise ModelFormatError(f"{folder / 'config.json'} has no model_type; save the model again with transformers 5")
    return model_type


def _load_model(folder: Path, family: Family, task: ModelTask, labels: int) -> PreTrainedModel:
    import torch  # noqa: PLC0415
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415
    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers import AutoConfig  # noqa: PLC0415

    from edge_sdk.modules.building import auto_class  # noqa: PLC0415

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        check_counts(config, folder)
        config.architectures = config.architectures or []  # transformers reads it where a task has two classes
        if not task.generates:
            config.num_labels = labels
        model, info = auto_class(task, config).from_pretrained(
            folder,
            config=config,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head for another number of classes is replaced, all else is an error
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelFormatError(f"{folder} cannot be loaded for {task.value}: {reason}; save the model again") from error
    except (StrictDataclassError, *_UNFIT) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_LETTERS]
        raise ModelFormatError(f"{folder / 'config.json'} describes no {family.name} ({reason}); restore it") from error
    check_loaded(info, folder, family, task)
    check_ties(model, folder)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its report, which warns of the new head; restored afterwards."""
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


def _mark_padding(model: PreTrainedModel, tokenizer_json: bytes) -> None:
    """Decoders classify what they read last before the padding, which they know by its id: that of our batches."""
    if hasattr(model, "score"):
        model.config.pad_token_id = TextEncoder(tokenizer_json, max_tokens=1).pad_id


def _check_start(model: PreTrainedModel, tokenizer_json: bytes, folder: Path) -> None:
    """A decoder of ours starts from the padding, as T5's does: a device knows no other token to start from."""
    start, pad_id = model.config.decoder_start_token_id, TextEncoder(tokenizer_json, max_tokens=1).pad_id
    if start != pad_id:
        raise ModelFormatError(
            f"{folder}: the decoder starts from token {start}, the tokenizer pads with {pad_id}; they must be equal"
        )


def _parameters(model: PreTrainedModel, architecture: Architecture) -> dict[str, Array]:
    """The parameters of the model with its new adapters, under their full-model names."""
    from edge_sdk.modules.adapters import inject_adapters  # noqa: PLC0415
    from edge_sdk.modules.building import parameter_name  # noqa: PLC0415

    inject_adapters(model, architecture, architecture.adapter_rank)
    return {parameter_name(own): value.detach().numpy().copy() for own, value in model.named_parameters()}


def _architecture(model: PreTrainedModel, family: Family, task: ModelTask, adapters: Adapters | None) -> Architecture:
    """The architecture: counts come from the configuration, sizes from the weights themselves."""
    config, stack = model.config, family.stacks[0]
    layer, out = model.get_submodule(stack.layer.format(0).rstrip(".")), 1 if family.is_transposed else 0
    weights = dict(layer.named_parameters())
    outputs = {name: weights[f"{name}.weight"].shape[out] for name in stack.outputs if f"{name}.weight" in weights}
    query = stack.attentions[0].q
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    encoder_layers = config.num_hidden_layers if config.is_encoder_decoder else 0
    return Architecture(
        family=family.name,
        layers=encoder_layers + (config.num_decoder_layers if encoder_layers else config.num_hidden_layers),
        heads=heads,
        head_size=outputs[query] // (stack.outputs[query].blocks * config.num_attention_heads),
        ffn=next(outputs[up] for up in stack.up if up in outputs),
        hidden=config.hidden_size,
        vocabulary=getattr(config, "vocab_size", 0),
        positions=_positions(model),
        labels=0 if task.generates else config.num_labels,
        group_size=config.num_attention_heads // heads,
        encoder_layers=encoder_layers,
        task=task,
        adapters=adapters,
        input_shape=_input_shape(model, task),
    )


def _input_shape(model: PreTrainedModel, task: ModelTask) -> tuple[int, ...]:
    config = model.config
    if task is ModelTask.IMAGE_CLASSIFICATION:
        size = config.image_size
        return (config.num_channels, *(size if isinstance(size, list | tuple) else (size, size)))
    if task is ModelTask.TIME_SERIES_CLASSIFICATION:
        return config.steps, config.channels
    return ()


def _positions(model: PreTrainedModel) -> int:
    """The longest input in tokens: the rows of the table of positions, else what the configuration allows.

    RoBERTa counts positions from the padding index + 1 on and loses the rows before.
    """
    for name, value in model.named_parameters():
        if name.endswith((".position_embeddings.weight", ".wpe.weight")):
            padding = model.get_submodule(name.removesuffix(".weight")).padding_idx
            return int(value.shape[0]) - (0 if padding is None else padding + 1)
        if name.endswith((".position_embeddings", ".positions")):  # (1, tokens, hidden)
            return int(value.shape[1])
    return getattr(model.config, "max_position_embeddings", None) or _RELATIVE_POSITIONS


def _portable_config(model: PreTrainedModel) -> bytes:
    settings = model.config.to_dict()
    for local in ("_name_or_path", "transformers_version", "use_cache"):  # modules are built without a cache
        settings.pop(local, None)
    settings["architectures"] = [type(model).__name__]  # not what the folder was before it got a head
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
