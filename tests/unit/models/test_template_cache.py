"""What is kept of compiled templates, whatever became of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.models import compilation
from coordinator.models.compilation import load_or_compile
from coordinator.models.foundation import Foundation, load_foundation
from coordinator.models.templates import Templates
from edge_sdk.elastic.submodel import ModelTask
from edge_sdk.errors import DiskFullError
from tests.support.tiny_models import LABELS, save_tiny_model


@pytest.fixture
def foundation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Foundation:
    """Whose templates take no time to compile."""
    monkeypatch.setattr(
        compilation, "compile_templates", lambda known: Templates(known.architecture, b"shell", (b"layer",))
    )
    folder = save_tiny_model(tmp_path / "model", "sensor-transformer")
    return load_foundation(folder, LABELS, 0, task=ModelTask.TIME_SERIES_CLASSIFICATION)


@pytest.mark.parametrize("left", [b"", b"\x00" * 100, b"\x93"], ids=["empty", "zeros", "cut"])
def test_file_that_a_loss_of_power_has_torn_is_made_again(tmp_path: Path, foundation: Foundation, left: bytes) -> None:
    said = list[str]()
    made = load_or_compile(foundation, tmp_path / "cache", said.append)
    (file,) = (tmp_path / "cache").glob("*.templates")
    file.write_bytes(left)
    assert load_or_compile(foundation, tmp_path / "cache", said.append) == made
    assert load_or_compile(foundation, tmp_path / "cache", said.append) == made
    assert len(said) == 2, "once at first, once more"


def test_full_disk_leaves_nothing_behind(
    tmp_path: Path, foundation: Foundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFullError):
        load_or_compile(foundation, tmp_path / "cache", lambda _: None)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
