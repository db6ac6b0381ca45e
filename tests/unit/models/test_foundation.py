from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from coordinator.models.foundation import Foundation, load_foundation
from edge_sdk.errors import ModelFormatError, UnsupportedArchitectureError
from tests.support.tiny_models import LABELS, save_tiny_model


def test_sizes_are_read_from_the_model(tiny: Foundation) -> None:
    sizes = tiny.architecture

    assert (sizes.layers, sizes.heads, sizes.head_size, sizes.ffn, sizes.hidden) == (3, 4, 6, 50, 24)
    assert (sizes.vocabulary, sizes.labels, tiny.labels) == (40, 3, LABELS)
    assert sizes.positions == (64 if sizes.family == "roberta" else 66)


def test_same_seed_gives_the_same_head_and_another_seed_another(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    labels = ("one", "two")

    first, again, other = (load_foundation(folder, labels, seed=seed) for seed in (1, 1, 2))

    assert np.array_equal(first.parameters["classifier.weight"], again.parameters["classifier.weight"])
    assert not np.array_equal(first.parameters["classifier.weight"], other.parameters["classifier.weight"])


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    capfd.readouterr()

    load_foundation(folder, ("one", "two"), seed=0)

    assert capfd.readouterr() == ("", "")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="nowhere"):
        load_foundation(tmp_path / "nowhere", LABELS, seed=0)


@pytest.mark.parametrize("config", ["{", "[]", "{}"])
def test_broken_config_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)

    with pytest.raises(ModelFormatError, match=r"config\.json"):
        load_foundation(tmp_path, LABELS, seed=0)


def test_unknown_architecture_is_named_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UnsupportedArchitectureError, match="mamba"):
        load_foundation(tmp_path, LABELS, seed=0)

    program = f"""
import sys, pathlib
from coordinator.models.foundation import load_foundation
from edge_sdk.errors import UnsupportedArchitectureError
try:
    load_foundation(pathlib.Path({str(tmp_path)!r}), ("a", "b"), seed=0)
except UnsupportedArchitectureError:
    sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    weights = save_tiny_model(tmp_path, "bert") / "model.safetensors"
    tensors = load_file(weights)
    tensors["bert.encoder.layer.1.output.dense.weight"][0, :2] = np.nan
    save_file(tensors, weights, metadata={"format": "pt"})

    with pytest.raises(ModelFormatError, match=r"layer\.1\.output\.dense\.weight has 2 values"):
        load_foundation(tmp_path, LABELS, seed=0)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    weights = save_tiny_model(tmp_path, "bert") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])

    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        load_foundation(tmp_path, LABELS, seed=0)


def test_missing_tokenizer_is_made_or_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
        load_foundation(folder, LABELS, seed=0)

    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword")
    assert b"word" in load_foundation(folder, LABELS, seed=0).tokenizer_json
