"""New models with random weights, for tasks where no pretrained model fits: a folder as Hugging Face writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coordinator.models.foundation import quiet_transformers
from edge_sdk.data import ArrayExamples
from edge_sdk.data.examples import task_of
from edge_sdk.disk import disk_errors
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ConfigurationError, DataFormatError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MIN_SCALE = 1e-6  # of a channel that never moves


@dataclass(frozen=True, slots=True)
class FreshSizes:
    """Counts of a new transformer; a head has hidden / heads entries.

    The default is for windows of a sensor, about 0.15 million parameters.
    """

    layers: int = 3
    heads: int = 8
    hidden: int = 64
    ffn: int = 256

    def __post_init__(self) -> None:
        """Raise ``ConfigurationError`` where the heads do not share the hidden size evenly."""
        if self.hidden % self.heads:
            raise ConfigurationError(
                f"{self.heads} heads cannot share a hidden size of {self.hidden}; choose a divisor"
            )

    @property
    def settings(self) -> dict[str, int]:
        """The same values under the names that transformers gives them."""
        return {
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
        }


def write_model_for(folder: Path, examples: ArrayExamples, sizes: FreshSizes, *, patch: int, seed: int) -> Path:
    """Write a model that fits ``examples``: windows, or square images, cut into patches of ``patch`` steps or pixels.

    Raises ``ConfigurationError`` where they cannot be cut evenly, ``DataFormatError`` for images that are not square.
    """
    values, labels = examples.values, len(set(examples.labels))
    if task_of(examples) is ModelTask.TIME_SERIES_CLASSIFICATION:
        mean, scale = values.mean(axis=(0, 1), dtype=np.float64), values.std(axis=(0, 1), dtype=np.float64)
        return write_sensor_model(
            folder,
            sizes,
            labels=labels,
            steps=values.shape[1],
            patch_steps=patch,
            mean=mean.tolist(),
            scale=np.maximum(scale, _MIN_SCALE).tolist(),
            seed=seed,
        )
    _, height, width, channels = values.shape
    if height != width:
        raise DataFormatError(f"images are {height} x {width} pixels; a new model needs square ones")
    return write_image_model(
        folder, sizes, labels=labels, image_size=height, patch_size=patch, channels=channels, seed=seed
    )


def write_sensor_model(
    folder: Path,
    sizes: FreshSizes,
    *,
    labels: int,
    steps: int,
    patch_steps: int,
    mean: Sequence[float],
    scale: Sequence[float],
    seed: int,
) -> Path:
    """A classifier of windows of ``steps`` steps, cut into patches of ``patch_steps``; ``folder`` is made.

    ``mean`` and ``scale`` have one value a channel, of the data's own unit: windows are standardised by them inside.
    Raises ``ConfigurationError`` where a window cannot be cut evenly, or a scale is not positive.
    """
    if len(mean) != len(scale) or not all(value > 0 for value in scale):
        raise ConfigurationError(f"a mean and a positive scale for each channel are needed, got {mean} and {scale}")
    import torch  # noqa: PLC0415 - seconds of import

    from edge_sdk.modules.sensor_transformer import SensorTransformer, SensorTransformerConfig  # noqa: PLC0415

    config = SensorTransformerConfig(
        channels=len(mean),
        steps=steps,
        patch_steps=patch_steps,
        head_dim=sizes.hidden // sizes.heads,
        num_labels=labels,
        initializer_range=sizes.hidden**-0.5,  # 0.02 suits widths in the hundreds
        **sizes.settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SensorTransformer(config)
    model.embeddings.mean.data = torch.tensor(mean, dtype=torch.float32)
    model.embeddings.scale.data = torch.tensor(scale, dtype=torch.float32)
    return _saved(model, folder)


def write_image_model(
    folder: Path, sizes: FreshSizes, *, labels: int, image_size: int, patch_size: int, channels: int, seed: int
) -> Path:
    """A vision transformer (arXiv 2010.11929) for square images of ``image_size`` pixels a side; ``folder`` is made.

    Raises ``ConfigurationError`` where an image cannot be cut into patches of ``patch_size`` evenly.
    """
    if image_size % patch_size:
        raise ConfigurationError(f"{image_size} pixels cannot be cut into patches of {patch_size}; choose a divisor")
    import torch  # noqa: PLC0415
    from transformers import ViTConfig, ViTForImageClassification  # noqa: PLC0415

    shape = {"image_size": image_size, "patch_size": patch_size, "num_channels": channels, "num_labels": labels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTForImageClassification(ViTConfig(**sizes.settings, **shape))
    return _saved(model, folder)


def _saved(model: PreTrainedModel, folder: Path) -> Path:
    with quiet_transformers(), disk_errors(folder):
        model.save_pretrained(folder)
    return folder
