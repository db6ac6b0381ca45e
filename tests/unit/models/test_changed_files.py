"""A task's own files change after it has begun, and its coordinator starts again."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.config import TaskConfig, read_task
from coordinator.models.run import prepare
from coordinator.rounds.tasks import queue_task
from coordinator.store.opening import open_store
from edge_sdk.data import ArrayExamples, write_examples
from edge_sdk.elastic.submodel import AdapterMethod
from edge_sdk.errors import ConfigurationError, DataFormatError, ModelFormatError
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.motion_task import motion_task, windows
from tests.support.tiny_models import LABELS

pytestmark = pytest.mark.xdist_group("sensor-transformer-time-series-classification")  # whose templates these are
RENAMED = ("else", *LABELS[1:])


def relabelled(folder: Path, labels: tuple[str, ...]) -> None:
    examples = windows(12, 1)
    named = tuple(labels[number % len(labels)] for number in range(len(examples)))
    write_examples(folder / "test", ArrayExamples(examples.values, named))


def queued(folder: Path, config: TaskConfig) -> TaskConfig:
    """What the store keeps."""
    with closing(open_store(folder / "state")) as store:
        queue_task(store, config, 0.0, "a test")
        with store.reading() as tx:
            return read_task(tx.tasks.all()[0].config)


def test_classes_are_settled_when_a_task_is_queued(tmp_path: Path, template_cache: Path) -> None:
    typed = motion_task(tmp_path, AdapterMethod.LORA)
    config = queued(tmp_path, typed)
    assert config.data.labels == tuple(sorted(LABELS))
    assert queued(tmp_path, typed) == queued(tmp_path, config) == config, "the same again changes nothing"
    relabelled(tmp_path, RENAMED)
    with pytest.raises(DataFormatError, match="example 1 has another label than the task's, which are first, second"):
        prepare(config, BlobFolder(tmp_path / "blobs"), template_cache, threads=1, say=print)
    with pytest.raises(ConfigurationError, match="exists with other settings"):
        queued(tmp_path, typed)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([f"class {number}" for number in range(1001)], "Expected `array` of length <= 1000"),
        ([f"{number:0400d}" for number in range(50)], "53 classes have names of 20016 bytes together, more than 16384"),
        (["x" * 501, "y"], "Expected `str` of length <= 500"),
    ],
    ids=["many", "much", "long"],
)
def test_classes_that_no_offer_can_name_are_refused(tmp_path: Path, labels: list[str], words: str) -> None:
    """As where a column of free text is taken for the labels: every device would drop the offer."""
    config = motion_task(tmp_path, AdapterMethod.LORA)
    examples = ArrayExamples(windows(len(labels), 1).values, tuple(labels))
    write_examples(tmp_path / "test", examples)
    with pytest.raises(ConfigurationError, match=words):
        queued(tmp_path, config)


def test_model_that_is_not_what_the_task_began_with_is_refused(tmp_path: Path, template_cache: Path) -> None:
    config, blobs = motion_task(tmp_path, AdapterMethod.LORA), BlobFolder(tmp_path / "blobs")
    _, version = prepare(config, blobs, template_cache, threads=1, say=print)
    known = (version.number, version.blobs)
    _, again = prepare(config, blobs, template_cache, threads=1, say=print, known=known)
    assert again.digest == version.digest
    relabelled(tmp_path, (*LABELS, "else"))
    words = re.escape("is not what the task began with: ") + r"classifier\.(weight|bias) is \(\d"
    with pytest.raises(ModelFormatError, match=words):
        prepare(config, blobs, template_cache, threads=1, say=print, known=known)
