"""Admission: every refusal by its reason."""

from pathlib import Path

import numpy as np
import pytest

from coordinator.aggregation.admission import Limits, Reason, Rejected, admit, admit_file
from edge_sdk.elastic.slicing import Region, extract
from edge_sdk.elastic.submodel import uniform
from edge_sdk.protocol.messages import TrainingReport
from edge_sdk.protocol.tensors import write_tensors
from tests.support.bert import TINY, slices, weights

BASE = weights(TINY, seed=0)
CUT = slices(uniform(TINY, 2), TINY)
NAME = "bert.encoder.layer.0.output.dense.weight"


def report(samples: int = 10) -> TrainingReport:
    return TrainingReport(
        samples=samples,
        steps=1,
        loss_first=1.0,
        loss_last=0.5,
        seconds=1.0,
        peak_memory_bytes=1,
        downloaded_bytes=1,
        uploaded_bytes=1,
    )


def update(scale: float = 0.01) -> dict:
    return {name: np.float32(scale) * array for name, array in extract(BASE, CUT).items()}


def rejection(tensors: dict, samples: int = 10) -> Reason:
    with pytest.raises(Rejected) as caught:
        admit(tensors, BASE, CUT, report(samples), Limits())
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_update_as_asked_is_admitted_with_its_samples() -> None:
    assert admit(update(), BASE, CUT, report(), Limits()) == 10


def test_update_of_a_scalar_and_of_a_window_around_the_end_is_admitted() -> None:
    """The norm counts what the window covers: 1 + 4 + 9, beside the scalar's 16."""
    base = {"scale": np.array(4, np.float32), "bias": np.array([3, 7, 1, 2], np.float32)}
    window = {"scale": Region(()), "bias": Region(((range(1), range(2, 4)),))}
    limits = Limits(max_norm_ratio=1.0)
    deltas = {"scale": np.array(-4, np.float32), "bias": np.array([3, 1, 2], np.float32)}
    assert admit(deltas, base, window, report(), limits) == 10
    deltas["bias"][0] = 4
    with pytest.raises(Rejected, match="norm"):
        admit(deltas, base, window, report(), limits)


def test_weight_beyond_policy_is_capped() -> None:
    assert admit(update(), BASE, CUT, report(samples=2**50), Limits(max_weight=500)) == 500


def test_update_without_samples_is_refused() -> None:
    assert rejection(update(), samples=0) is Reason.SAMPLES


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_single_value_that_is_not_finite_is_refused(value: float) -> None:
    tensors = update()
    tensors[NAME][1, 1] = value
    assert rejection(tensors) is Reason.NOT_FINITE


@pytest.mark.parametrize("scale", [6.0, 1e25, 1e36])
def test_norm_beyond_the_limit_is_refused(scale: float) -> None:
    tensors = update()
    tensors[NAME] = np.full_like(tensors[NAME], scale * 100)
    with np.errstate(over="ignore"):
        assert rejection(tensors) is Reason.NORM


def test_missing_extra_and_misshapen_tensors_are_refused() -> None:
    missing, extra, misshapen, wide = update(), update(), update(), update()
    missing.pop(NAME)
    extra["another"] = np.zeros(2, np.float32)
    misshapen[NAME] = misshapen[NAME].T
    wide[NAME] = wide[NAME].astype(np.float64)
    assert {rejection(tensors) for tensors in (missing, extra, misshapen, wide)} == {Reason.TABLE}


def test_file_is_admitted_like_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "update"
    with path.open("wb") as file:
        write_tensors(file, update())
    assert admit_file(path, BASE, CUT, report(), Limits()) == 10


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100])
def test_file_that_is_no_tensor_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "update"
    path.write_bytes(content)
    with pytest.raises(Rejected) as caught:
        admit_file(path, BASE, CUT, report(), Limits())
    assert caught.value.reason is Reason.TABLE
