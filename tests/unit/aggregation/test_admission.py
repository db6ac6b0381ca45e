"""Admission: every refusal by its reason."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.aggregation.admission import Limits, Rejected, admit_file
from edge_sdk.elastic.slicing import Region, Slices, extract
from edge_sdk.elastic.submodel import uniform
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.encodings import encode
from edge_sdk.protocol.messages import FP32, Encoding, EncodingKind, Refusal, TrainingReport
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


def admit(tensors: dict, base: dict, cut: Slices, said: TrainingReport, limits: Limits, how: Encoding = FP32) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "update")
        with path.open("wb") as file:
            write_tensors(file, tensors)
        return admit_file(path, base, cut, msgspec.structs.replace(said, encoding=how), limits)


def rejection(tensors: dict, samples: int = 10, how: Encoding = FP32) -> Refusal:
    with pytest.raises(Rejected) as caught:
        admit(tensors, BASE, CUT, report(samples), Limits(), how)
    assert "\n" not in str(caught.value)
    return caught.value.refusal


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


def test_norm_beyond_what_any_update_may_have_is_refused_whatever_the_model_has_become() -> None:
    grown = {name: array * np.float32(1e20) for name, array in BASE.items()}
    with pytest.raises(Rejected, match=r"norm .*; at most 1e\+12 is admitted"):
        admit({name: array * np.float32(1e15) for name, array in update().items()}, grown, CUT, report(), Limits())


@pytest.mark.parametrize("limits", [{"max_weight": 0}, {"max_norm": float("inf")}, {"max_norm_ratio": float("nan")}])
def test_limits_that_limit_nothing_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"admission has {next(iter(limits))}"):
        Limits(**limits)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_single_value_that_is_not_finite_is_refused(value: float) -> None:
    tensors = update()
    tensors[NAME][1, 1] = value
    assert rejection(tensors) is Refusal.NOT_FINITE


@pytest.mark.parametrize("scale", [6.0, 1e25, 1e36])
def test_norm_beyond_the_limit_is_refused(scale: float) -> None:
    tensors = update()
    tensors[NAME] = np.full_like(tensors[NAME], scale * 100)
    with np.errstate(over="ignore"):
        assert rejection(tensors) is Refusal.NORM


def test_missing_extra_and_misshapen_tensors_are_refused() -> None:
    missing, extra, misshapen, wide = update(), update(), update(), update()
    missing.pop(NAME)
    extra["another"] = np.zeros(2, np.float32)
    misshapen[NAME] = misshapen[NAME].T
    wide[NAME] = wide[NAME].astype(np.int64)
    assert {rejection(tensors) for tensors in (missing, extra, misshapen, wide)} == {Refusal.TABLE}


ENCODINGS = {
    "fp16": Encoding(kind=EncodingKind.FP16),
    "int8": Encoding(kind=EncodingKind.INT8),
    "topk": Encoding(kind=EncodingKind.TOPK, share=0.2),
}


def encoded(how: str, scale: float = 0.01) -> dict:
    return {name: array.copy() for name, array in encode(update(scale), ENCODINGS[how], seed=1).items()}


@pytest.mark.parametrize("how", ENCODINGS)
def test_encoded_update_is_admitted(how: str) -> None:
    assert admit(encoded(how), BASE, CUT, report(), Limits(), ENCODINGS[how]) == 10


@pytest.mark.parametrize("how", ENCODINGS)
def test_update_in_another_encoding_than_asked_for_is_refused(how: str) -> None:
    others = {**ENCODINGS, "fp32": FP32, "more": Encoding(kind=EncodingKind.TOPK, share=0.3)}
    for other in others.values():
        if other != ENCODINGS[how]:
            assert rejection(encoded(how), how=other) is Refusal.TABLE


@pytest.mark.parametrize("how", ENCODINGS)
def test_norm_of_an_encoded_update_beyond_the_limit_is_refused(how: str) -> None:
    assert rejection(encoded(how, scale=100.0), how=ENCODINGS[how]) is Refusal.NORM


@pytest.mark.parametrize("how", ["fp16", "topk"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_half_that_is_not_finite_is_refused(how: str, value: float) -> None:
    tensors = encoded(how)
    tensors[NAME].flat[3] = value
    assert rejection(tensors, how=ENCODINGS[how]) is Refusal.NOT_FINITE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3])
def test_scale_that_is_not_finite_or_negative_is_refused(value: float) -> None:
    tensors = encoded("int8")
    tensors[f"{NAME}:scale"][-1] = value
    assert rejection(tensors, how=ENCODINGS["int8"]) is Refusal.SCALE


def test_scale_that_makes_values_infinite_is_refused() -> None:
    tensors = encoded("int8")
    tensors[f"{NAME}:scale"][:] = 3e38
    tensors[NAME][0] = 127
    with np.errstate(over="ignore"):
        assert rejection(tensors, how=ENCODINGS["int8"]) is Refusal.NOT_FINITE


@pytest.mark.parametrize(
    "places",
    [
        lambda sent, size: [*sent[:-1], size],
        lambda sent, _: [*sent[:-1], 2**32 - 1],
        lambda sent, _: [sent[1], *sent[1:]],
        lambda sent, _: [sent[1], sent[0], *sent[2:]],
        lambda sent, _: [0] * len(sent),
    ],
    ids=["one beyond", "far beyond", "twice", "falling", "all the same"],
)
def test_places_that_do_not_rise_or_lie_outside_are_refused(places: Callable[[list[int], int], list[int]]) -> None:
    tensors = encoded("topk")
    index = tensors[f"{NAME}:index"]
    index[:] = places(index.tolist(), update()[NAME].size)
    assert rejection(tensors, how=ENCODINGS["topk"]) is Refusal.INDEX


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100])
def test_file_that_is_no_tensor_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "update"
    path.write_bytes(content)
    with pytest.raises(Rejected) as caught:
        admit_file(path, BASE, CUT, report(), Limits())
    assert caught.value.refusal is Refusal.TABLE
