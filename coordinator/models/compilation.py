"""Compiles a foundation model's graph templates once, and caches them.

No template leaves this module unchecked: the exporter is known to lose outputs and to translate some operators wrongly
without an error, so the gradients of a stitched submodel are compared with torch's own first.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.models.foundation import Foundation
from coordinator.models.merging import without_adapters
from coordinator.models.running import Runner
from coordinator.models.template_export import export_layers, export_shell, mean_loss
from coordinator.models.templates import Templates, batch_inputs
from coordinator.models.torch_modules import torch_module
from coordinator.models.training_graph import training_graph
from edge_sdk.decoding import UNDECODABLE
from edge_sdk.disk import disk_errors, write_durably
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Architecture, ModelTask, Submodel, TrainablePart
from edge_sdk.errors import ModelFormatError
from edge_sdk.modules.building import full_name
from edge_sdk.protocol.graphs import GRADIENT, IGNORED, INPUTS, TEXT_TASKS

_log = logging.getLogger(__name__)

GRADIENT_TOLERANCE = 1e-4
"""Largest relative difference of a gradient from torch's; 5e-6 is usual for float32."""

_SOURCES = (
    "coordinator.models.compilation",
    "coordinator.models.joint_export",
    "coordinator.models.recording",
    "coordinator.models.template_export",
    "coordinator.models.templates",
    "coordinator.models.tracing",
    "edge_sdk.elastic.families",
    "edge_sdk.modules.adapters",
    "edge_sdk.modules.building",
    "edge_sdk.modules.patches",
    "edge_sdk.modules.sensor_transformer",
    "edge_sdk.modules.widths",
)


def compile_templates(foundation: Foundation) -> Templates:
    """Export the templates and check them; about 10 s on one core for each stack, whatever the depth and width.

    Raises ``ModelFormatError`` where a gradient of a stitched submodel differs from torch's.
    """
    templates = Templates(
        architecture=foundation.architecture,
        shell=export_shell(foundation).SerializeToString(),
        layers=tuple(layer.SerializeToString() for layer in export_layers(foundation)),
    )
    errors = gradient_errors(foundation, templates, _small_submodel(foundation.architecture))
    error, parameter = max((error, name) for name, error in errors.items())
    if not error <= GRADIENT_TOLERANCE:
        raise ModelFormatError(
            f"the compiled gradient of {parameter} differs from torch's by {error:.1e}, "
            f"not by at most {GRADIENT_TOLERANCE:.0e}; install the torch version that pyproject.toml names"
        )
    return templates


def load_or_compile(foundation: Foundation, cache: Path, say: Callable[[str], None] = _log.info) -> Templates:
    """The templates from the folder ``cache``, or compiled and put there; a file is never seen half written.

    Processes that want the same templates at the same time compile them once: the others wait. Adapters of a kind that
    has no graph are left out, so such a model has the templates of the model without.
    """
    if not foundation.architecture.has_graph:
        return replace(load_or_compile(without_adapters(foundation), cache, say), architecture=foundation.architecture)
    path = cache / f"{_digest(foundation)}.templates"
    with disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (kept := _kept(path)) is not None:
                return kept
            say("compiling the graph's templates, once for this model")
            templates = compile_templates(foundation)
            write_durably(path, msgspec.msgpack.encode(templates))
    return templates


def _kept(path: Path) -> Templates | None:
    """What an earlier process has compiled; ``None`` also of a file that was damaged since."""
    if path.is_file():
        with suppress(*UNDECODABLE):
            return msgspec.msgpack.decode(path.read_bytes(), type=Templates)
    return None


def _digest(foundation: Foundation) -> str:
    """Of all that the templates follow from: configuration, library versions, and this package's own source."""
    digest = hashlib.sha256(foundation.config_json + msgspec.msgpack.encode(foundation.architecture))
    for library in ("torch", "transformers", "onnx", "onnxscript"):
        digest.update(f"{library}={version(library)};".encode())
    for module in _SOURCES:
        digest.update(Path(import_module(module).__file__ or "").read_bytes())
    return digest.hexdigest()


def gradient_errors(foundation: Foundation, templates: Templates, submodel: Submodel) -> dict[str, float]:
    """For every trainable parameter of ``submodel``, the relative L2 error of its compiled gradient against torch's.

    A gradient that is zero in theory, as a key bias's is, holds only rounding noise: nothing is divided by less than a
    thousandth of the largest gradient's norm.
    """
    batch = _random_batch(foundation)
    weights, expected = _torch_gradients(foundation, submodel, batch)
    actual = Runner(training_graph(templates, submodel, TrainablePart.ALL), threads=1).run(batch, weights)
    floor = 1e-3 * max(np.linalg.norm(gradient) for gradient in expected.values())
    return {
        name: float(np.linalg.norm(actual[GRADIENT + name] - gradient) / max(np.linalg.norm(gradient), floor))
        for name, gradient in expected.items()
    }


def _torch_gradients(
    foundation: Foundation, submodel: Submodel, batch: dict[str, NDArray[np.generic]]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Every parameter of the submodel, and the gradient of the training graph's loss for those that are trained."""
    architecture = foundation.architecture
    module = torch_module(foundation, submodel)
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    logits = module(**{name: tensors.pop(name) for name in INPUTS[architecture.task]}).logits
    mean_loss(architecture.task, logits, *tensors.values()).backward()
    named = {full_name(own, architecture, submodel): value for own, value in module.named_parameters()}
    gradients = {name: value.grad.numpy() for name, value in named.items() if value.grad is not None}
    return {name: value.detach().numpy() for name, value in named.items()}, gradients


def _small_submodel(architecture: Architecture) -> Submodel:
    """The first and the last layer, the one at a single head, the other whole, so that widths and depth all differ.

    Of an encoder-decoder both of each stack, whose heads are equally many: a single one in the encoder.
    """
    stacks = [sorted({stack[0], stack[-1]}) for stack in architecture.stacks]
    layers, last = tuple(layer for stack in stacks for layer in stack), stacks[-1] if len(stacks) > 1 else stacks[0][1:]
    heads = tuple(architecture.heads if layer in last else 1 for layer in layers)
    ffn = tuple(architecture.ffn if layer in last else architecture.ffn // 2 + 1 for layer in layers)
    return Submodel(layers, heads, ffn, (architecture.adapter_rank + 1) // 2)


def _random_batch(foundation: Foundation) -> dict[str, NDArray[np.generic]]:
    """Inputs, targets and offset of three examples, in the order of the training graph's."""
    architecture, random = foundation.architecture, np.random.default_rng(0)
    if architecture.task in TEXT_TASKS:
        shape = (3, min(16, architecture.positions))
        mask = np.ones(shape, dtype=np.int64)
        mask[0, shape[1] // 2 :] = 0
        inputs = [random.integers(2, architecture.vocabulary, shape), mask]
        if architecture.encoder_layers:
            inputs.append(random.integers(2, architecture.vocabulary, (3, min(11, architecture.positions))))
    else:
        inputs = [random.normal(size=(3, *foundation.input_shape)).astype(np.float32)]
    values = [*inputs, *_random_targets(architecture, inputs[-1], random)]
    return dict(zip(batch_inputs(architecture.task), values, strict=True))


def _random_targets(
    architecture: Architecture, mask: NDArray[Any], random: np.random.Generator
) -> list[NDArray[np.generic]]:
    """Targets that are no single label, so that distillation is checked too, and a logit offset where there is one.

    ``mask`` is the last input: of a decoder, tokens, after some of which nothing is to be learnt.
    """
    offset = random.normal(size=architecture.labels).astype(np.float32)
    if architecture.task.generates:
        counts = mask % 3 > 0 if architecture.encoder_layers else mask == 1
        return [np.where(counts, random.integers(0, architecture.vocabulary, mask.shape), IGNORED)]
    if architecture.task is ModelTask.TOKEN_CLASSIFICATION:
        targets = random.dirichlet(np.ones(architecture.labels), mask.shape) * mask[..., None]
        return [targets.astype(np.float32), offset]
    return [random.dirichlet(np.ones(architecture.labels), len(mask)).astype(np.float32), offset]
