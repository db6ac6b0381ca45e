"""Compile a foundation model's templates, once, and keep them.

No template leaves this module unchecked: the exporter is known to lose outputs and to translate some operators wrongly
without an error, so the gradients of a stitched submodel are compared with torch's own first.
"""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from coordinator.models.foundation import Foundation
from coordinator.models.running import Runner
from coordinator.models.template_export import export_layer, export_shell
from coordinator.models.templates import GRAD, Templates
from coordinator.models.torch_modules import full_name, torch_module
from coordinator.models.training_graph import training_graph
from edge_sdk.disk import disk_errors
from edge_sdk.elastic.slicing import Array
from edge_sdk.elastic.submodel import Architecture, Submodel, TrainablePart
from edge_sdk.errors import ModelFormatError

GRADIENT_TOLERANCE = 1e-4
"""Largest relative difference of a gradient from torch's; 5e-6 is usual for float32."""

_SOURCES = ("compilation.py", "joint_export.py", "template_export.py", "templates.py", "torch_modules.py")


def compile_templates(foundation: Foundation) -> Templates:
    """Export both templates and check them; about 30 s on one core, whatever the depth and width.

    Raises ``ModelFormatError`` where a gradient of a stitched submodel differs from torch's.
    """
    templates = Templates(
        architecture=foundation.architecture,
        shell=export_shell(foundation).SerializeToString(),
        layer=export_layer(foundation).SerializeToString(),
    )
    errors = gradient_errors(foundation, templates, _small_submodel(foundation.architecture))
    error, parameter = max((error, name) for name, error in errors.items())
    if not error <= GRADIENT_TOLERANCE:
        raise ModelFormatError(
            f"the compiled gradient of {parameter} differs from torch's by {error:.1e}, "
            f"not by at most {GRADIENT_TOLERANCE:.0e}; install the torch version that pyproject.toml names"
        )
    return templates


def load_or_compile(foundation: Foundation, cache: Path) -> Templates:
    """The templates from the folder ``cache``, or compiled and put there; a file is never seen half written.

    Processes that want the same templates at the same time compile them once: the others wait.
    """
    path = cache / f"{_digest(foundation)}.templates"
    with disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.is_file():
                return msgspec.msgpack.decode(path.read_bytes(), type=Templates)
            templates = compile_templates(foundation)
            with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
                file.write(msgspec.msgpack.encode(templates))
            Path(file.name).replace(path)
    return templates


def _digest(foundation: Foundation) -> str:
    """Of all that the templates follow from: configuration, library versions, and this package's own source."""
    digest = hashlib.sha256(foundation.config_json)
    for library in ("torch", "transformers", "onnx", "onnxscript"):
        digest.update(f"{library}={version(library)};".encode())
    for source in _SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    return digest.hexdigest()


def gradient_errors(foundation: Foundation, templates: Templates, submodel: Submodel) -> dict[str, float]:
    """For every parameter of ``submodel``, how far its compiled gradient is from torch's, relative to torch's (L2).

    A gradient that is zero in theory, as a key bias's is, holds only rounding noise: nothing is divided by less than a
    thousandth of the largest gradient's norm.
    """
    batch = _random_batch(foundation.architecture)
    expected = _torch_gradients(foundation, submodel, batch)
    weights = {name: values for name, (values, _) in expected.items()}
    actual = Runner(training_graph(templates, submodel, TrainablePart.ALL), threads=1).run(batch, weights)
    floor = 1e-3 * max(np.linalg.norm(gradient) for _, gradient in expected.values())
    return {
        name: float(np.linalg.norm(actual[GRAD + name] - gradient) / max(np.linalg.norm(gradient), floor))
        for name, (_, gradient) in expected.items()
    }


def _torch_gradients(
    foundation: Foundation, submodel: Submodel, batch: dict[str, NDArray[np.generic]]
) -> dict[str, tuple[Array, Array]]:
    """Every parameter of the submodel with its gradient of the training graph's loss, by torch."""
    module = torch_module(foundation, submodel)
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    labels, logit_offset = tensors.pop("labels"), tensors.pop("logit_offset")
    functional.cross_entropy(module(**tensors).logits + logit_offset, labels).backward()
    return {
        full_name(name, foundation.family, submodel): (value.detach().numpy(), value.grad.numpy())
        for name, value in module.named_parameters()
    }


def _small_submodel(architecture: Architecture) -> Submodel:
    """The first and the last layer, the one at a single head, the other whole, so that widths and depth all differ."""
    layers = (0, architecture.layers - 1) if architecture.layers > 1 else (0,)
    heads, ffn = (1, architecture.heads), (architecture.ffn // 2 + 1, architecture.ffn)
    return Submodel(layers, heads[: len(layers)], ffn[: len(layers)])


def _random_batch(architecture: Architecture) -> dict[str, NDArray[np.generic]]:
    random, shape = np.random.default_rng(0), (3, min(16, architecture.positions))
    attention_mask = np.ones(shape, dtype=np.int64)
    attention_mask[0, shape[1] // 2 :] = 0
    return {
        "input_ids": random.integers(2, architecture.vocabulary, shape),
        "attention_mask": attention_mask,
        "labels": random.integers(0, architecture.labels, shape[0]),
        "logit_offset": random.normal(size=architecture.labels).astype(np.float32),
    }
