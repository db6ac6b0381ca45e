"""Messages and tensors: what is written is read back, and nothing else is read as anything."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any, get_args

import hypothesis.extra.numpy as hnp
import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import (
    AdapterMethod,
    Adapters,
    Architecture,
    ModelTask,
    Role,
    Submodel,
    TrainablePart,
)
from edge_sdk.errors import MalformedMessageError, TensorTableError
from edge_sdk.protocol.encodings import table_of
from edge_sdk.protocol.messages import (
    FP32,
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    Announce,
    BlobEntry,
    BlobGone,
    Chunk,
    ChunkRequest,
    CoordinatorMessage,
    Declined,
    DeviceMessage,
    Encoding,
    EncodingKind,
    Failure,
    Hello,
    Message,
    Offer,
    Offline,
    Part,
    Ready,
    Receipt,
    Recipe,
    Refused,
    Release,
    ReleaseReport,
    Renew,
    Renewed,
    Snapshot,
    TrainingReport,
    UpdateReady,
    Verdict,
    Wait,
    decode_from_coordinator,
    decode_from_device,
    encode,
)
from edge_sdk.protocol.tensors import Tensors, read_tensors, write_tensors

Decode = Callable[[bytes], Message]
DECODERS = [decode_from_device, decode_from_coordinator]

# -- messages

names = st.text("abcxyz019-", min_size=1, max_size=64)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
texts = st.text(max_size=500)
counts = st.integers(0, 2**53)
positives = st.integers(1, 2**53)
finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
ders = st.binary(max_size=4096)
seconds = st.floats(0, 1e9)
entries = st.builds(BlobEntry, part=st.sampled_from(Part), digest=digests, size_bytes=st.integers(0, 2**34))
encodings = st.builds(
    Encoding,
    kind=st.sampled_from(EncodingKind),
    share=st.floats(0, 1, exclude_min=True),
    feedback=st.booleans(),
)
layer_counts = st.lists(st.integers(1, 64), min_size=1, max_size=24).map(tuple)
sizes = st.integers(1, 2**20)
adapters = st.builds(
    Adapters,
    rank=sizes,
    scale=st.floats(0, 1e6),
    targets=st.lists(st.sampled_from(Role), max_size=6).map(tuple),
    method=st.sampled_from(AdapterMethod),
)
architectures = st.builds(
    Architecture,
    family=names,
    **{field.name: sizes for field in fields(Architecture) if field.type == "int"},
    task=st.sampled_from(ModelTask),
    adapters=st.none() | adapters,
)
submodels = st.builds(
    Submodel,
    layers=layer_counts,
    heads=layer_counts,
    ffn=layer_counts,
    adapter_rank=sizes,
    first_head=sizes,
    first_neuron=sizes,
)
snapshots = st.builds(
    Snapshot,
    memory_total_bytes=counts,
    memory_available_bytes=counts,
    training_memory_bytes=counts,
    inference_memory_bytes=counts,
    threads=positives,
    battery_share=st.none() | shares,
    temperature_c=st.none() | finite,
    runtime=st.sampled_from(Runtime),
    accelerator=st.none() | texts,
    providers=st.none() | st.lists(texts, max_size=32).map(tuple),
    throttled=st.none() | st.booleans(),
    others_cpu_share=st.none() | shares,
    metered=st.none() | st.booleans(),
    link_bytes_per_s=st.none() | seconds,
)
reports = st.builds(
    TrainingReport,
    samples=positives,
    steps=positives,
    loss_first=finite,
    loss_last=finite,
    seconds=seconds,
    peak_memory_bytes=counts,
    downloaded_bytes=counts,
    uploaded_bytes=counts,
    battery_share=st.none() | shares,
)
recipes = st.builds(
    Recipe,
    learning_rate=st.floats(1e-9, 10),
    batch_size=st.integers(1, 4096),
    epochs=st.integers(1, 1000),
    max_tokens=st.integers(3, 8192),
    distillation=shares,
    proximal=st.floats(0, 1e6),
    pixel_std=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=3).map(tuple),
)
chunk_messages = st.one_of(
    st.builds(ChunkRequest, digest=digests, ranges=st.lists(st.tuples(counts, counts), max_size=256).map(tuple)),
    st.builds(
        Chunk,
        digest=digests,
        offset=counts,
        data=st.binary(max_size=1000),
        data_digest=st.binary(min_size=32, max_size=32),
    ),
    st.builds(BlobGone, digest=digests),
)
device_messages = chunk_messages | st.one_of(
    st.builds(Hello, device=names, session=counts, profile=names, agent_version=texts),
    st.builds(Offline, device=names, session=counts),
    st.builds(Ready, snapshot=snapshots),
    st.builds(Renew, certificate=ders, request=ders, signature=st.binary(max_size=128)),
    st.builds(Declined, task=names, round=positives, failure=st.sampled_from(Failure), detail=texts),
    st.builds(
        UpdateReady,
        update_id=digests,
        task=names,
        round=positives,
        base_version=digests,
        update=entries,
        report=reports,
    ),
    st.builds(ReleaseReport, release=positives, task=names, healthy=st.booleans(), accuracy=st.none() | shares),
)
coordinator_messages = chunk_messages | st.one_of(
    st.builds(Announce, session=counts),
    st.builds(
        Offer,
        task=names,
        round=positives,
        base_version=digests,
        architecture=architectures,
        submodel=submodels,
        part=st.sampled_from(TrainablePart),
        labels=st.lists(texts, max_size=5).map(tuple),
        recipe=recipes,
        deadline_s=seconds,
        predicted_memory_bytes=counts,
        manifest=st.lists(entries, max_size=16).map(tuple),
        nested=st.lists(submodels, max_size=4).map(tuple),
        encoding=encodings,
    ),
    st.builds(Wait, retry_after_s=seconds, reason=texts),
    st.builds(Receipt, update_id=digests, verdict=st.sampled_from(Verdict), reason=texts),
    st.builds(Release, envelope=st.binary(max_size=2000)),
    st.builds(Refused, reason=texts),
    st.builds(Renewed, certificate=ders),
)


OFFER = Offer(
    task="t",
    round=1,
    base_version="0" * 64,
    architecture=Architecture("bert", 1, 1, 1, 1, 1, 1, 1, 1),
    submodel=Submodel((0,), (1,), (1,)),
    part=TrainablePart.ALL,
    labels=("x", "y"),
    recipe=Recipe(learning_rate=0.1, batch_size=1, epochs=1, max_tokens=8),
    deadline_s=1,
    predicted_memory_bytes=1,
    manifest=(BlobEntry(part=Part.WEIGHTS, digest="0" * 64, size_bytes=1),),
)

SIZES = ("memory_total_bytes", "memory_available_bytes", "training_memory_bytes", "inference_memory_bytes", "threads")


@given(device_messages)
def test_device_message_is_read_back(message: DeviceMessage) -> None:
    assert decode_from_device(encode(message)) == message


@given(coordinator_messages)
def test_coordinator_message_is_read_back(message: CoordinatorMessage) -> None:
    assert decode_from_coordinator(encode(message)) == message


def test_snapshot_from_before_it_told_of_accelerators_and_links_is_read() -> None:
    old = {"type": "ready", "snapshot": dict.fromkeys(SIZES, 1)}
    message = decode_from_device(msgspec.msgpack.encode(old))
    assert isinstance(message, Ready)
    assert (message.snapshot.accelerator, message.snapshot.providers, message.snapshot.metered) == (None, None, None)


@pytest.mark.parametrize("harm", [{"share": 0.0}, {"share": 1.5}, {"kind": "pickle"}, {"feedback": 2}])
def test_encoding_out_of_range_is_refused(harm: dict[str, object]) -> None:
    offer = msgspec.msgpack.decode(encode(OFFER))
    assert decode_from_coordinator(msgspec.msgpack.encode(offer)) == OFFER
    offer["encoding"] |= harm
    with pytest.raises(MalformedMessageError):
        decode_from_coordinator(msgspec.msgpack.encode(offer))


def test_offer_from_before_there_were_encodings_asks_for_fp32() -> None:
    old = msgspec.msgpack.decode(encode(OFFER))
    del old["encoding"]
    assert decode_from_coordinator(msgspec.msgpack.encode(old)) == OFFER


def test_every_message_type_is_tried() -> None:
    tried = {Hello, Offline, Ready, Renew, Declined, UpdateReady, ReleaseReport, ChunkRequest, Chunk, BlobGone}
    assert tried == set(get_args(DeviceMessage))
    tried = {Announce, Offer, Wait, Receipt, Release, Refused, Renewed, ChunkRequest, Chunk, BlobGone}
    assert tried == set(get_args(CoordinatorMessage))


@given(device_messages)
def test_neither_side_can_play_the_other(message: DeviceMessage) -> None:
    if not isinstance(message, ChunkRequest | Chunk | BlobGone):
        with pytest.raises(MalformedMessageError):
            decode_from_coordinator(encode(message))


def decode_or_refuse(decode: Decode, payload: bytes) -> None:
    """A message or ``MalformedMessageError``; anything else that is raised fails the test."""
    with suppress(MalformedMessageError):
        assert isinstance(decode(payload), Message)


@pytest.mark.parametrize("decode", DECODERS)
@given(payload=st.binary(max_size=300))
def test_garbage_is_refused(decode: Decode, payload: bytes) -> None:
    decode_or_refuse(decode, payload)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10) | st.integers(0, 9), inner),
)


@pytest.mark.parametrize("decode", DECODERS)
@given(value=json_like, tag=st.sampled_from(["hello", "offer", "chunk", "ready", "eval", ""]))
def test_wellformed_messagepack_of_another_shape_is_refused(decode: Decode, value: object, tag: str) -> None:
    decode_or_refuse(decode, msgspec.msgpack.encode(value))
    decode_or_refuse(decode, msgspec.msgpack.encode({"type": tag, "device": value, "snapshot": value, "digest": value}))


@settings(max_examples=200)
@given(message=device_messages, seed=st.integers(0, 2**32))
def test_flipped_and_cut_messages_are_refused_or_wellformed(message: DeviceMessage, seed: int) -> None:
    print(f"seed {seed}")
    chance, payload = random.Random(seed), bytearray(encode(message))
    payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
    decode_or_refuse(decode_from_device, bytes(payload))
    decode_or_refuse(decode_from_device, bytes(payload[: chance.randrange(len(payload))]))


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "payload",
    [
        b"\x91" * 100_000,
        b"\x81\xa1a" * 30_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x00" * 10_000_000,
    ],
    ids=["nested lists", "nested maps", "list of 4 G", "map of 4 G", "bytes of 4 G", "10 MB"],
)
def test_bombs_are_refused(decode: Decode, payload: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode(payload)


def test_large_message_that_is_no_chunk_is_refused() -> None:
    offer = msgspec.structs.replace(OFFER, labels=("x" * 500,) * 200)
    assert MAX_MESSAGE_BYTES < len(encode(offer)) < MAX_CHUNK_BYTES
    with pytest.raises(MalformedMessageError, match="exceeds the limit of 65536"):
        decode_from_coordinator(encode(offer))


def test_full_chunk_is_read() -> None:
    chunk = Chunk(digest="0" * 64, offset=2**53, data=bytes(MAX_CHUNK_BYTES), data_digest=bytes(32))
    assert decode_from_device(encode(chunk)) == chunk


@pytest.mark.parametrize("wrong", [{"proximal": -0.1}, {"distillation": 1.1}, {"pixel_std": (0.5, 0.0)}])
def test_recipe_outside_its_limits_is_refused(wrong: dict[str, object]) -> None:
    settings = {"learning_rate": 0.1, "batch_size": 1, "epochs": 1, "max_tokens": 8}
    msgspec.convert(settings, Recipe)
    with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
        msgspec.convert(settings | wrong, Recipe)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_share_that_is_no_share_is_refused(value: float) -> None:
    report = ReleaseReport(release=1, task="t", healthy=True, accuracy=value)
    with pytest.raises(MalformedMessageError):
        decode_from_device(encode(report))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_speed_that_is_none_is_refused(value: float) -> None:
    snapshot = Snapshot(**dict.fromkeys(SIZES, 1), gflops=value)
    with pytest.raises(MalformedMessageError, match="gflops"):
        decode_from_device(encode(Ready(snapshot=snapshot)))


@pytest.mark.parametrize(
    "message",
    [
        Offline(device="a\n", session=1),
        BlobGone(digest="0" * 64 + "\n"),
        Ready(snapshot=Snapshot(**dict.fromkeys(SIZES, 1)), tasks=("a\n",)),
    ],
)
def test_name_or_digest_with_a_line_feed_at_its_end_is_refused(message: DeviceMessage) -> None:
    with pytest.raises(MalformedMessageError, match="matching regex"):
        decode_from_device(encode(message))


# -- tensors

arrays = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float16, np.int64]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)
tensor_maps = st.dictionaries(
    st.text(min_size=1, max_size=20).filter(lambda n: n != "__metadata__"), arrays, max_size=4
)


def written(tensors: Tensors) -> bytes:
    file = io.BytesIO()
    write_tensors(file, tensors)
    return file.getvalue()


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(tensor_maps)
def test_tensors_are_read_back_and_readonly(tensors: Tensors) -> None:
    found = read_tensors(written(tensors))
    assert_same(found, tensors)
    assert not any(array.flags.writeable for array in found.values())


@given(tensor_maps)
def test_tensors_are_understood_by_the_safetensors_package(tensors: Tensors) -> None:
    assert_same(safetensors.numpy.load(written(tensors)), tensors)


@given(tensor_maps)
def test_files_of_the_safetensors_package_are_understood(tensors: Tensors) -> None:
    assert_same(read_tensors(safetensors.numpy.save(tensors)), tensors)


@given(st.binary(max_size=200))
def test_garbage_is_no_tensor_file(data: bytes) -> None:
    read_or_refuse(data)
    read_or_refuse(len(data).to_bytes(8, "little") + data)


def read_or_refuse(data: bytes) -> None:
    with suppress(TensorTableError):
        read_tensors(data)


@given(tensor_maps.filter(bool), st.data())
def test_truncated_tensor_file_is_refused(tensors: Tensors, data: st.DataObject) -> None:
    whole = written(tensors)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(TensorTableError):
        read_tensors(cut)
    with pytest.raises(TensorTableError):
        read_tensors(whole + b"\0")


@settings(max_examples=300)
@given(tensor_maps, st.integers(0, 2**32))
def test_flipped_header_is_refused_or_wellformed(tensors: Tensors, seed: int) -> None:
    print(f"seed {seed}")
    chance, data = random.Random(seed), bytearray(written(tensors))
    data[chance.randrange(8 + int.from_bytes(data[:8], "little"))] ^= 1 << chance.randrange(8)
    read_or_refuse(bytes(data))


GOOD = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}


@pytest.mark.parametrize(
    "table",
    [
        {"a": (2, 3)},
        {"a": (2, 3), "b": (4,), "c": (1,)},
        {"a": (3, 2), "b": (4,)},
        {"a": (6,), "b": (4,)},
        {"a": (2, 3), "c": (4,)},
        {},
    ],
)
def test_another_table_than_agreed_is_refused(table: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(TensorTableError):
        read_tensors(written(GOOD), table_of(table, FP32))


def test_agreed_table_is_read() -> None:
    assert_same(read_tensors(written(GOOD), table_of({"b": (4,), "a": (2, 3)}, FP32)), GOOD)


@pytest.mark.parametrize("dtype", [np.float16, np.int64])
def test_another_type_than_float32_is_refused_where_a_table_is_agreed(dtype: type[Any]) -> None:
    with pytest.raises(TensorTableError, match="expected F32"):
        read_tensors(written({"a": np.ones(2, dtype)}), table_of({"a": (2,)}, FP32))


def file_of(header: object, rows: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rows


ATTACKS = {
    "overlap": file_of(
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        bytes(4),
    ),
    "gap": file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "negative axis": file_of({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, bytes(4)),
    "huge axis": file_of({"a": {"dtype": "F32", "shape": [2**62, 0, 2**62], "data_offsets": [0, 0]}}),
    "overflow": file_of({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
    "many axes": file_of({"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, bytes(4)),
    "beyond 64 bits": file_of({"a": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]}}),
    "unknown type": file_of({"a": {"dtype": "pickle", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "extra field": file_of({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4], "code": "x"}}, bytes(4)),
    "no object": file_of([1, 2]),
    "nested": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "not UTF-8": (8).to_bytes(8, "little") + b'{"\xff": 1}',
    "long header": (2**40).to_bytes(8, "little"),
    "empty": b"",
}


@pytest.mark.parametrize("data", ATTACKS.values(), ids=ATTACKS.keys())
def test_attack_by_tensor_header_is_refused(data: bytes) -> None:
    with pytest.raises(TensorTableError):
        read_tensors(data)
