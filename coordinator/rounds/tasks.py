"""Queue a task, after looking at all that can be wrong with it before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec

from coordinator.config import TaskConfig
from coordinator.models.foundation import model_type_of
from coordinator.store.database import Store
from edge_sdk.data import read_examples
from edge_sdk.elastic.families import family_of
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.topics import check_name


def queue_task(store: Store, config: TaskConfig, now_s: float) -> None:
    """Record a pending task.

    Raises ``ConfigurationError`` for a name that is taken, ``UnsupportedArchitectureError``, ``ModelFormatError`` or
    ``DataFormatError`` for what it is to work on.
    """
    check_name(config.name, "task")
    family_of(model_type_of(Path(config.model_dir)))
    for file in (config.calibration_file, config.test_file):
        read_examples(Path(file))
    encoded = msgspec.json.encode(config)
    with store.transaction() as tx:
        if tx.tasks.add(config.name, encoded, now_s).config != encoded:
            raise ConfigurationError(f"task {config.name!r} exists with other settings; choose another name")
