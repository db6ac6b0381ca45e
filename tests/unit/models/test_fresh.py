"""Models from scratch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coordinator.models.foundation import load_foundation
from coordinator.models.fresh import FreshSizes, write_image_model, write_sensor_model
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import ConfigurationError
from tests.support.tiny_models import LABELS

SIZES = FreshSizes(layers=2, heads=4, hidden=24, ffn=40)


def write_sensor(folder: Path, *, seed: int = 0, steps: int = 20, scale: tuple[float, ...] = (1.5, 2.5)) -> Path:
    return write_sensor_model(
        folder, SIZES, labels=3, steps=steps, patch_steps=5, mean=(0.5, -1.0), scale=scale, seed=seed
    )


def write_image(folder: Path, *, seed: int = 0, image_size: int = 8) -> Path:
    return write_image_model(folder, SIZES, labels=3, image_size=image_size, patch_size=4, channels=1, seed=seed)


@pytest.mark.parametrize(
    ("write", "task", "shape", "positions"),
    [
        (write_sensor, ModelTask.TIME_SERIES_CLASSIFICATION, (20, 2), 5),
        (write_image, ModelTask.IMAGE_CLASSIFICATION, (1, 8, 8), 5),
    ],
)
def test_new_model_is_a_foundation_that_its_seed_determines(
    tmp_path: Path, write: object, task: ModelTask, shape: tuple[int, ...], positions: int
) -> None:
    assert callable(write)
    folders = [write(tmp_path / str(index), seed=seed) for index, seed in enumerate((1, 1, 2))]
    first, again, other = (load_foundation(folder, LABELS, seed=0, task=task) for folder in folders)
    query = next(name for name in first.parameters if name.endswith(("q.weight", "q_proj.weight")))

    sizes = first.architecture
    assert (sizes.layers, sizes.heads, sizes.head_size, sizes.ffn, sizes.hidden) == (2, 4, 6, 40, 24)
    assert (first.input_shape, sizes.positions, sizes.labels) == (shape, positions, 3)
    np.testing.assert_equal(first.parameters, again.parameters)
    assert not np.array_equal(first.parameters[query], other.parameters[query])


def test_mean_and_scale_are_kept_in_the_model(tmp_path: Path) -> None:
    task = ModelTask.TIME_SERIES_CLASSIFICATION
    parameters = load_foundation(write_sensor(tmp_path), LABELS, seed=0, task=task).parameters

    assert parameters["embeddings.mean"].tolist() == [0.5, -1.0]
    assert parameters["embeddings.scale"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize("scale", [(1.0,), (1.0, 0.0), (1.0, float("nan"))])
def test_scale_that_does_not_fit_is_refused(tmp_path: Path, scale: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="a mean and a positive scale for each channel"):
        write_sensor(tmp_path, scale=scale)


def test_sizes_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="5 heads cannot share a hidden size of 24"):
        FreshSizes(heads=5, hidden=24)
    with pytest.raises(ConfigurationError, match="22 steps cannot be cut into patches of 5"):
        write_sensor(tmp_path, steps=22)
    with pytest.raises(ConfigurationError, match="10 pixels cannot be cut into patches of 4"):
        write_image(tmp_path, image_size=10)
