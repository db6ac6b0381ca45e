"""The specification of the wire and the code say the same, and what version 1 ever sent is read for ever."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk import protocol
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, Architecture, Submodel, TrainablePart
from edge_sdk.elastic.submodel import Role as LayerRole
from edge_sdk.protocol import encodings, messages
from edge_sdk.protocol.blobs import digest_of, update_id
from edge_sdk.protocol.graphs import IGNORED, INPUTS
from edge_sdk.protocol.messages import (
    CoordinatorMessage,
    DeviceMessage,
    Encoding,
    EncodingKind,
    Message,
    decode_from_coordinator,
    decode_from_device,
    encode,
)
from edge_sdk.protocol.releases import Assignment, Export, Precision, ReleaseManifest, Root, Trial, verified
from edge_sdk.protocol.signing import Envelope, Keys, Role, Signature
from edge_sdk.protocol.tensors import read_tensors
from edge_sdk.security.trust import parse_root
from tests.support.proof import Proof
from tests.support.wire_types import name_of, written

README = (Path(protocol.__file__).parent / "README.md").read_text(encoding="utf-8")
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "wire-1.json").read_text(encoding="utf-8"))
DECODERS = {"device": decode_from_device, "coordinator": decode_from_coordinator}
BOTH = set(get_args(DeviceMessage)) & set(get_args(CoordinatorMessage))
MESSAGES = {
    "messages: device": set(get_args(DeviceMessage)) - BOTH,
    "messages: coordinator": set(get_args(CoordinatorMessage)) - BOTH,
    "messages: both": BOTH,
}
VALUES = {
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not kind.__name__.startswith("_")
} - set(get_args(Message)) | {Adapters, Architecture, Submodel}
SIGNED = (Root, ReleaseManifest, Export, Assignment, Trial, Keys, Envelope, Signature)
ENUMS = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Enum)} - {Enum}


def section(mark: str) -> str:
    """What stands between a comment and the next."""
    return README.split(f"<!-- {mark} -->")[1].split("<!--")[0]


def rows(mark: str) -> Iterator[list[str]]:
    """The cells of a table, without its head and without the ticks around names."""
    for line in section(mark).strip().splitlines()[2:]:
        yield [re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in line.strip("|").split("|")]


def documented(mark: str) -> dict[str, list[str]]:
    """Fields by the message or value that they belong to."""
    found: dict[str, list[str]] = {}
    name = ""
    for first, field, *_ in rows(mark):
        name = first or name
        found.setdefault(name, []).append(field)
    return found


def fields_of(kind: type) -> list[str]:
    return [field.encode_name for field in msgspec.inspect.type_info(kind).fields]


@pytest.mark.parametrize("mark", MESSAGES)
def test_every_message_is_specified_with_its_fields(mark: str) -> None:
    assert documented(mark) == {wire_name(kind): fields_of(kind) for kind in MESSAGES[mark]}


def test_every_value_is_specified_with_its_fields() -> None:
    assert documented("values") == {kind.__name__: fields_of(kind) for kind in VALUES}


def test_what_is_signed_is_specified() -> None:
    assert documented("signed") == {kind.__name__: fields_of(kind) for kind in SIGNED}


def wire_name(kind: type) -> str:
    """A message's type, or a value's name."""
    return (issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag) or kind.__name__


@pytest.mark.parametrize("mark", ["values", "signed", *MESSAGES])
def test_types_ranges_and_defaults_are_specified(mark: str) -> None:
    kinds = {wire_name(kind): kind for kind in {"values": VALUES, "signed": SIGNED}.get(mark, MESSAGES.get(mark, ()))}
    name = ""
    for first, field, shown, *_ in rows(mark):
        name = first or name
        info = next(known for known in msgspec.inspect.type_info(kinds[name]).fields if known.encode_name == field)
        type_, _, default = shown.partition(" = ")
        assert f"`{type_}`" == written(info.type) or type_ == written(info.type), f"{name}.{field}"
        assert bool(default) != info.required, f"{name}.{field}"
        if default:
            text = default.strip("`")
            meant = json.loads(msgspec.json.encode(default_of(info)))
            assert text == meant or superset(meant, json.loads(text)), f"{name}.{field}"


def default_of(info: msgspec.inspect.Field) -> object:
    return info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()


def test_every_kind_of_value_is_specified() -> None:
    found = {first: re.findall(r"`([^`]+)`", kinds) for first, kinds, *_ in rows("enums")}
    elsewhere = {Runtime, TrainablePart, Role, Precision, AdapterMethod, LayerRole}
    assert found == {name_of(kind): [member.value for member in kind] for kind in ENUMS | elsewhere}


def test_limits_are_specified() -> None:
    assert f"{messages.MAX_CHUNK_BYTES + messages.CHUNK_OVERHEAD_BYTES:,} bytes" in README
    assert f"| {messages.MAX_MESSAGE_BYTES // 1024} KiB |" in README
    assert f"| {messages.MAX_BLOB_BYTES // 2**30} GiB |" in README
    assert f"| {messages.MAX_TASKS} |" in README


def examples(mark: str) -> list[bytes]:
    blocks = re.findall(r"(?:^ {4}[0-9a-f]+$\n?)+", section(mark), re.MULTILINE)
    return [bytes.fromhex("".join(block.split())) for block in blocks]


def test_byte_examples_are_what_the_text_says() -> None:
    hello, offline, ready, wait, request, chunk = (
        decode(payload)
        for decode, payload in zip(
            (*[decode_from_device] * 3, decode_from_coordinator, *[decode_from_device] * 2),
            examples("bytes"),
            strict=True,
        )
    )
    assert (hello.device, hello.session, hello.versions) == ("pi", 3, (1,))
    assert (offline.device, offline.session) == ("pi", 3)
    assert ready.tasks == ("news",)
    assert ready.snapshot.battery_share is None
    assert wait.retry_after_s == 10
    assert request.ranges == ((0, 3),)
    assert chunk.data == b"abc"
    assert chunk.digest == request.digest == chunk.data_digest.hex()


def test_updates_by_their_bytes_are_what_the_text_says() -> None:
    b, w = np.array([0.5, -0.25, 0, 1], np.float32), np.array([[1.27, 0, -0.635], [0, 0, 0]], np.float32)
    int8, topk, update = examples("files")
    for file, kind, deltas in ((int8, EncodingKind.INT8, {"b": b, "w": w}), (topk, EncodingKind.TOPK, {"w": w})):
        encoding = Encoding(kind=kind, share=0.4)
        shapes = {name: values.shape for name, values in deltas.items()}
        found = encodings.decode(read_tensors(file, encodings.table_of(shapes, encoding)), shapes, encoding)
        for name, values in deltas.items():
            assert np.allclose(found[name], values, atol=0.01)
    assert read_tensors(int8)["w"].tolist() == [[127, 0, -64], [0, 0, 0]]
    assert read_tensors(topk)["w:index"].tolist() == [0, 1, 2]
    assert update.hex() == update_id("pi", "news", 1, digest_of(b"abc"), digest_of(topk))


def test_a_root_of_trust_by_its_bytes_is_what_the_text_says() -> None:
    file = "".join(re.findall(r"^ {4}(\{.*\n(?: {4}.*\n?)+)", section("files"), re.MULTILINE)).replace("\n    ", "")
    envelope = parse_root(file.encode(), "README.md")
    secrets = [Ed25519PrivateKey.from_private_bytes(bytes([role]) * 32) for role in (1, 2, 3)]
    keys = [Keys(keys=(secret.public_key().public_bytes_raw(),)) for secret in secrets]
    root = verified(Root, envelope, keys[0])
    assert [root.root, root.release, root.round] == keys


def test_an_example_of_a_tensor_header_is_read() -> None:
    (header,) = re.findall(r'^ {4}(\{"p": .*\})$', README, re.MULTILINE)
    (tensor,) = read_tensors(len(header).to_bytes(8, "little") + header.encode() + bytes(24)).values()
    assert tensor.shape == (2, 3)


def test_inputs_of_graphs_are_specified() -> None:
    """Those of a task that takes "the same" are what the first takes, and more."""
    shown: dict[str, list[str]] = {}
    for task, inputs, _ in rows("graphs"):
        above = shown["text-classification"] if inputs.startswith("the same") else []
        shown[task] = above + re.findall(r"`([a-z_]+)`", inputs)
    assert shown == {task.value: list(names) for task, names in INPUTS.items()}
    assert f"{IGNORED} for none" in README


# -- golden: what version 1 sent, and newer and older peers


def as_read(message: Message) -> Mapping[str, Any]:
    return json.loads(msgspec.json.encode(message))


def is_read_as_it_was_meant(sender: str, payload: bytes, meant: Mapping[str, Any]) -> bool:
    """A newer reader of what version 1 sent."""
    return superset(as_read(DECODERS[sender](payload)), meant)


def is_found_by_an_older_reader(sender: str, payload: bytes, _: Mapping[str, Any]) -> bool:
    """What is written now still has every field that version 1 had, under its name and with its value."""
    now = encode(DECODERS[sender](payload))
    return superset(msgspec.msgpack.decode(now), msgspec.msgpack.decode(payload))


def may_say_more(sender: str, payload: bytes, _: Mapping[str, Any]) -> bool:
    """What a newer writer adds does not disturb."""
    decode = DECODERS[sender]
    return decode(msgspec.msgpack.encode(with_more(msgspec.msgpack.decode(payload)))) == decode(payload)


@pytest.mark.parametrize("holds", [is_read_as_it_was_meant, is_found_by_an_older_reader, may_say_more])
def test_versions_understand_each_other(holds: Callable[[str, bytes, Mapping[str, Any]], bool], proof: Proof) -> None:
    misread = [
        golden["message"]["type"]
        for golden in GOLDEN
        if not holds(golden["from"], bytes.fromhex(golden["bytes"]), golden["message"])
    ]
    print(misread)
    what = holds.__name__.replace("_", " ")
    proof.show(
        "R11", f"of {len(GOLDEN)} golden messages, those of which it is not true: {what}", len(misread), at_most=0
    )


class ShyWait(msgspec.Struct, tag="wait", rename={"retry_after_s": "pause_s"}):
    """What no version may make of it: a field has another name, and another default means something else."""

    retry_after_s: float = 0.0
    reason: str = "come back soon"


def test_version_that_renames_a_field_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: of three promises it breaks the two that a writer's change can break."""
    monkeypatch.setitem(DECODERS, "coordinator", lambda payload: msgspec.msgpack.decode(payload, type=ShyWait))
    payload, meant = (
        msgspec.msgpack.encode({"type": "wait", "retry_after_s": 10.0}),
        {"retry_after_s": 10.0, "reason": ""},
    )
    assert not is_read_as_it_was_meant("coordinator", payload, meant)
    assert not is_found_by_an_older_reader("coordinator", payload, meant)


def superset(more: object, known: object) -> bool:
    """Whether everything in ``known`` is in ``more`` with the same value."""
    if isinstance(known, dict) and isinstance(more, dict):
        return all(key in more and superset(more[key], value) for key, value in known.items())
    if isinstance(known, list) and isinstance(more, list):
        return len(known) == len(more) and all(map(superset, more, known))
    return more == known


def with_more(value: object) -> object:
    """The same with a field that nobody knows in every map."""
    if isinstance(value, dict):
        return {"added-later": [1, {"a": None}]} | {key: with_more(inner) for key, inner in value.items()}
    return [with_more(inner) for inner in value] if isinstance(value, list) else value


def test_every_type_has_a_golden_message() -> None:
    assert {golden["message"]["type"] for golden in GOLDEN} == set(map(wire_name, get_args(Message)))
