"""Encodings of updates: what comes back, how far it is from what went in, and what the device keeps of the rest."""

from __future__ import annotations

import io

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.elastic.slicing import Array
from edge_sdk.protocol import codecs
from edge_sdk.protocol.codecs import row_blocks, rows_of
from edge_sdk.protocol.encodings import blocks, bytes_per_entry, codec_of, decode, encode, table_of, take_away
from edge_sdk.protocol.halves import to_half
from edge_sdk.protocol.messages import FP32, Encoding, EncodingKind
from edge_sdk.protocol.tensors import read_tensors, size_of, write_tensors

FP16, INT8 = Encoding(kind=EncodingKind.FP16), Encoding(kind=EncodingKind.INT8)
shares = st.floats(0.001, 1)
topk = shares.map(lambda share: Encoding(kind=EncodingKind.TOPK, share=share))
encodings = st.sampled_from([FP32, FP16, INT8]) | topk
seeds = st.integers(0, 2**53)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, max_side=7)
sizes = st.sampled_from([1e-30, 1e-8, 1e-4, 1.0, 1e5, 1e30])
quick = settings(max_examples=40)


def made(shape: tuple[int, ...], seed: int, size: float, zeros: float) -> Array:
    """Normal values, and a share of ``zeros``."""
    random = np.random.default_rng(seed)
    return np.asarray(size * random.standard_normal(shape) * (random.random(shape) >= zeros), np.float32)


arrays = st.builds(made, shapes, seeds, sizes, st.sampled_from([0.0, 0.5, 1.0]))
deltas = st.dictionaries(st.text("ab.", min_size=1, max_size=4), arrays, max_size=4)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> object:
    """Blocks far smaller than a parameter, so that their borders are met."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "BLOCK", 16)
        patch.setattr(blocks, "__defaults__", (16,))
        yield


def shapes_of(tensors: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in tensors.items()}


def said(values: Array, encoding: Encoding, seed: int = 0) -> Array:
    """What a decoder gets."""
    return decode(encode({"x": values}, encoding, seed), {"x": values.shape}, encoding)["x"]


@quick
@given(deltas, encodings, seeds)
def test_file_has_the_table_that_follows_from_the_shapes_and_is_read_back(
    tensors: dict[str, Array], encoding: Encoding, seed: int
) -> None:
    table, file, encoded = table_of(shapes_of(tensors), encoding), io.BytesIO(), encode(tensors, encoding, seed)
    write_tensors(file, encoded)
    found = read_tensors(file.getvalue(), table)
    assert sum(values.nbytes for values in found.values()) == size_of(table)
    assert all(values.flags.aligned for values in found.values())
    back, expected = (decode(parts, shapes_of(tensors), encoding) for parts in (found, encoded))
    assert {name: values.tobytes() for name, values in back.items()} == {
        name: values.tobytes() for name, values in expected.items()
    }


@quick
@given(deltas, encodings, seeds)
def test_same_deltas_and_seed_give_the_same_bytes(tensors: dict[str, Array], encoding: Encoding, seed: int) -> None:
    first, again = (encode(tensors, encoding, seed) for _ in range(2))
    assert {name: values.tobytes() for name, values in first.items()} == {
        name: values.tobytes() for name, values in again.items()
    }


@quick
@given(arrays, encodings, seeds)
def test_any_rows_are_decoded_without_those_before_them(values: Array, encoding: Encoding, seed: int) -> None:
    tensors, whole = encode({"x": values}, encoding, seed), said(values, encoding, seed).reshape(-1)

    def read(part: str, first: int, into: np.ndarray) -> None:
        into[:] = tensors["x" + part].reshape(-1)[first : first + into.size]

    for block in row_blocks(values.shape, 16):
        piece = np.empty(len(block), np.float32)
        codec_of(encoding).decode(values.shape, block.start, piece, read)
        assert piece.tobytes() == whole[block.start : block.stop].tobytes()


@quick
@given(arrays)
def test_fp32_loses_nothing(values: Array) -> None:
    assert said(values, FP32).tobytes() == values.tobytes()


@quick
@given(arrays)
def test_fp16_is_off_by_half_a_unit_of_its_last_place_at_most(values: Array) -> None:
    values = np.clip(values, -65504, 65504)
    unit = np.maximum(2.0**-24, 2.0 ** (np.floor(np.log2(np.maximum(np.abs(values), 2.0**-14))) - 10))
    assert (np.abs(said(values, FP16).astype(np.float64) - values) <= unit / 2).all()


def test_every_float16_comes_back_as_it_is() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    assert to_half(every.astype(np.float32)).tobytes() == every.tobytes()


@pytest.mark.parametrize("value", [65520.0, 1e6, 3e38])
@pytest.mark.parametrize("encoding", [FP16, Encoding(kind=EncodingKind.TOPK, share=1.0)])
def test_what_is_beyond_float16_becomes_its_largest(value: float, encoding: Encoding) -> None:
    assert said(np.array([value, -value], np.float32), encoding).tolist() == [65504, -65504]


@quick
@given(arrays, seeds)
def test_int8_is_off_by_less_than_a_scale(values: Array, seed: int) -> None:
    tensors = encode({"x": values}, INT8, seed)
    rows = rows_of(values.shape)
    error = np.abs(said(values, INT8, seed).astype(np.float64) - values).reshape(rows)
    scales = tensors["x:scale"].astype(np.float64)
    largest = np.abs(values).reshape(rows).max(axis=1)
    assert (scales <= largest / 126.9).all()
    assert (error <= np.maximum(1.00001 * scales, 1e-27)[:, None]).all()


@settings(max_examples=10)
@given(seeds)
def test_int8_is_right_in_the_mean(seed: int) -> None:
    """A draw's deviation is half a scale at most; six of those of the mean."""
    print(f"seed {seed}")
    row = np.random.default_rng(seed).standard_normal(5).astype(np.float32)
    draws = np.tile(row, (4000, 1))
    scale = encode({"x": draws}, INT8, seed)["x:scale"][0]
    mean = said(draws, INT8, seed).mean(axis=0, dtype=np.float64)
    assert (np.abs(mean - row) <= 6 * 0.5 * scale / np.sqrt(len(draws))).all()


def test_int8_keeps_zeros_and_rows_of_almost_nothing_are_zero() -> None:
    values = np.array([[0, 1, 0], [0, 0, 0], [1e-38, -1e-38, 0]], np.float32)
    assert (said(values, INT8)[values != 1] == 0).all()


@quick
@given(arrays, shares)
def test_topk_sends_the_largest_and_residual_is_exactly_the_rest(values: Array, share: float) -> None:
    encoding = Encoding(kind=EncodingKind.TOPK, share=share)
    tensors, rest = encode({"x": values}, encoding, 0), {"x": values.copy()}
    take_away(rest, tensors, encoding)
    sent, places = said(values, encoding), tensors["x:index"].astype(np.int64)
    left = np.delete(np.abs(values).reshape(-1), places)
    assert (np.diff(places) > 0).all()
    assert np.abs(values).reshape(-1)[places].min() >= left.max(initial=0)
    assert (np.delete(sent.reshape(-1), places) == 0).all()
    assert np.array_equal(sent + rest["x"], values)


@quick
@given(arrays, encodings, seeds)
def test_what_is_said_and_the_residual_are_the_delta(values: Array, encoding: Encoding, seed: int) -> None:
    rest = {"x": values.copy()}
    take_away(rest, encode({"x": values}, encoding, seed), encoding)
    whole = said(values, encoding, seed).astype(np.float64) + rest["x"]
    np.testing.assert_allclose(whole, values, rtol=0, atol=1e-7 * np.abs(values).max())


@settings(max_examples=10)
@given(encodings, seeds)
def test_feedback_says_a_stream_of_deltas_in_the_long_run(encoding: Encoding, seed: int) -> None:
    """What all updates said is what all deltas were, less the last residual, which does not grow with their number."""
    print(f"seed {seed}")
    random, residual = np.random.default_rng(seed), {"x": np.zeros((5, 20), np.float32)}
    deltas_sum, said_sum = (np.zeros((5, 20)) for _ in range(2))
    for round_number in range(50):
        delta = random.standard_normal((5, 20)).astype(np.float32)
        deltas_sum += delta
        made_up = {"x": delta + residual["x"]}
        tensors = encode(made_up, encoding, seed + round_number)
        said_sum += decode(tensors, {"x": delta.shape}, encoding)["x"]
        take_away(made_up, tensors, encoding)
        residual = made_up
    np.testing.assert_allclose(said_sum + residual["x"], deltas_sum, atol=1e-3)
    sent = 1 if encoding.kind is not EncodingKind.TOPK else int(encode(residual, encoding, 0)["x:index"].size) / 100
    assert np.linalg.norm(residual["x"]) <= 2 * np.sqrt(100) / sent


@pytest.mark.parametrize(
    ("encoding", "expected"), [(FP32, 4), (FP16, 2), (INT8, 1), (Encoding(kind=EncodingKind.TOPK, share=0.1), 0.6)]
)
def test_bytes_per_entry(encoding: Encoding, expected: float) -> None:
    assert bytes_per_entry(encoding) == pytest.approx(expected, rel=1e-4)
