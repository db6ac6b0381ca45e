"""A recipe that cuts texts later than the model's positions end."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.config import TaskConfig
from coordinator.demo.inputs import write_examples
from coordinator.models.run import prepare
from edge_sdk.data import TextExamples
from edge_sdk.protocol.messages import Recipe
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.tiny_models import LABELS, WORDS, save_tiny_model

pytestmark = pytest.mark.xdist_group("bert-text-classification")  # whose templates these are
POSITIONS = 66


@pytest.mark.parametrize(("asked", "used"), [(POSITIONS - 1, POSITIONS - 1), (8192, POSITIONS)])
def test_devices_cut_texts_where_the_model_s_positions_end(
    tmp_path: Path, template_cache: Path, asked: int, used: int
) -> None:
    """Their training and their inference would end at the first text that is longer."""
    texts = tuple(" ".join(WORDS[:3]) + f" {WORDS[number % 3]}" * 70 for number in range(12))
    examples = TextExamples(texts, tuple(LABELS[number % len(LABELS)] for number in range(12)))
    files = [tmp_path / name for name in ("few.csv", "test.csv")]
    for file in files:
        write_examples(file, examples)
    config = TaskConfig(
        name="long",
        model_dir=str(save_tiny_model(tmp_path / "model", "bert")),
        calibration_file=str(files[0]),
        test_file=str(files[1]),
        recipe=Recipe(learning_rate=1e-2, batch_size=4, epochs=1, max_tokens=asked),
    )
    run, _ = prepare(config, BlobFolder(tmp_path / "blobs"), template_cache, threads=1, say=print)
    assert run.foundation.architecture.positions == POSITIONS
    assert run.config.recipe.max_tokens == used
