"""A task on a tiny model of sensor windows, with adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coordinator.config import TaskConfig
from edge_sdk.data import ArrayExamples, write_examples
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, TrainablePart
from edge_sdk.protocol.messages import Recipe
from tests.support.tiny_models import LABELS, save_tiny_model

RECIPE = Recipe(learning_rate=1e-2, batch_size=4, epochs=4, max_tokens=16)


def motion_task(folder: Path, method: AdapterMethod, **settings: object) -> TaskConfig:
    """Its model and its examples lie in ``folder``; ``settings`` replace its own."""
    files = {name: write_examples(folder / name, windows(12, seed)) for seed, name in enumerate(("few", "test"))}
    own = {
        "name": "motion",
        "model_dir": str(save_tiny_model(folder / "model", "sensor-transformer")),
        "calibration_file": str(files["few"]),
        "test_file": str(files["test"]),
        "recipe": RECIPE,
        "part": TrainablePart.ADAPTERS,
        "adapters": Adapters.of(method, 4),
    }
    return TaskConfig(**own | settings)


def windows(count: int, seed: int) -> ArrayExamples:
    """What a window is shows in its mean."""
    random, kinds = np.random.default_rng(seed), np.arange(count) % len(LABELS)
    values = random.normal(size=(count, 24, 5)) + kinds[:, None, None]
    return ArrayExamples(values.astype(np.float32), tuple(LABELS[kind] for kind in kinds))
