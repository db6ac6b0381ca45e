"""What comes over MQTT: messages, topics, tensor files, envelopes, and blobs in chunks."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random

import msgspec
import numpy as np

from edge_sdk.errors import BlobCorruptError, MalformedMessageError, TensorTableError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.encodings import table_of
from edge_sdk.protocol.messages import (
    FP32,
    GRAIN_BYTES,
    BlobGone,
    Chunk,
    ChunkRequest,
    decode_from_coordinator,
    decode_from_device,
    encode,
)
from edge_sdk.protocol.tensors import read_tensors, write_tensors
from edge_sdk.protocol.topics import Channel, Topic, parse
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import BlobExchange
from tests.security import attacks
from tests.support import mutation
from tests.support.parsers.parser import Parser

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "wire-1.json").read_text(encoding="utf-8"))
_BLOB = Random(1).randbytes(2 * GRAIN_BYTES + 99)


def parsers(folder: Path) -> list[Parser]:
    """All of this room; files that they need lie in ``folder``."""
    golden = {
        side: tuple(bytes.fromhex(one["bytes"]) for one in GOLDEN if one["from"] in {side, "both"})
        for side in ("device", "coordinator")
    }
    topics = (str(Topic("default")), *(str(Topic("default", "pi", channel)) for channel in Channel))
    return [
        Parser(
            "message of a device",
            decode_from_device,
            golden["device"],
            MalformedMessageError,
            mutation.msgpack_or_torn,
            200,
            attacks.MSGPACK_BOMBS,
        ),
        Parser(
            "message of the coordinator",
            decode_from_coordinator,
            golden["coordinator"],
            MalformedMessageError,
            mutation.msgpack_or_torn,
            200,
            attacks.MSGPACK_BOMBS,
        ),
        Parser(
            "topic",
            lambda data: parse(data.decode("utf-8", "replace")),
            tuple(topic.encode() for topic in topics),
            MalformedMessageError,
            weight=200,
        ),
        *_tensor_parsers(),
        *_blob_parsers(folder),
    ]


def tensors() -> dict[str, np.ndarray]:
    """One of each type."""
    return {
        "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "bias": np.ones(3, np.float16),
        "scale": np.ones((), np.float32),
        "index": np.arange(3, dtype=np.uint32),
        "rounded": np.zeros((2, 0, 5), np.int8),
    }


def tensor_bytes(values: dict[str, np.ndarray]) -> bytes:
    """As a tensor file has them."""
    file = io.BytesIO()
    write_tensors(file, values)
    return file.getvalue()


def _tensor_parsers() -> list[Parser]:
    floats = {"weight": np.ones((3, 4), np.float32), "bias": np.ones(3, np.float32)}
    table = table_of({name: values.shape for name, values in floats.items()}, FP32)
    return [
        Parser(
            "tensor file",
            read_tensors,
            (tensor_bytes(tensors()), tensor_bytes({})),
            TensorTableError,
            mutation.tensor_file,
            200,
            attacks.TENSOR_FILES,
        ),
        Parser(
            "tensor file of a known table",
            lambda data: read_tensors(data, table),
            (tensor_bytes(floats),),
            TensorTableError,
            mutation.tensor_file,
            200,
            attacks.TENSOR_FILES,
        ),
    ]


def _blob_parsers(folder: Path) -> list[Parser]:
    digest, size_bytes = digest_of(_BLOB), len(_BLOB)

    def transferred(data: bytes) -> None:
        """A list of messages, to who fetches a blob and has it in another folder to give."""
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = msgspec.msgpack.decode(data)
            exchange = BlobExchange(BlobFolder(folder / "fetching"), lambda *_: None)
            exchange.fetch("peer", digest, size_bytes, 0.0)
            for each in said if isinstance(said, list) else []:
                with suppress(MalformedMessageError):
                    message = decode_from_coordinator(msgspec.msgpack.encode(each))
                    if isinstance(message, (ChunkRequest, Chunk, BlobGone)):
                        exchange.handle("peer", message, 1.0)
            exchange.close()
            shutil.rmtree(folder / "fetching")

    def half_fetched(flags: bytes) -> None:
        """What a crash has left of a transfer: all bytes, and these flags."""
        blobs = BlobFolder(folder / "half")
        (blobs.path / f"{digest}.part").write_bytes(_BLOB)
        (blobs.path / f"{digest}.have").write_bytes(flags)
        partial = blobs.open_partial(digest, size_bytes)
        for grain in list(partial.missing()):
            partial.write(grain * GRAIN_BYTES, _BLOB[grain * GRAIN_BYTES :][:GRAIN_BYTES])
        partial.commit()
        blobs.delete(digest)

    chunks = [
        Chunk(digest=digest, offset=start, data=part, data_digest=hashlib.sha256(part).digest())
        for start in range(0, size_bytes, GRAIN_BYTES)
        for part in (_BLOB[start : start + GRAIN_BYTES],)
    ]
    said = [*chunks, ChunkRequest(digest=digest, ranges=((0, size_bytes),)), BlobGone(digest=digest)]
    whole = msgspec.msgpack.encode([msgspec.msgpack.decode(encode(message)) for message in said])
    return [
        Parser("messages of a transfer", transferred, (whole,), (), mutation.msgpack_or_torn, 2),
        Parser("flags of half a blob", half_fetched, (b"\1\1\1", b"\1\0\1"), BlobCorruptError, weight=3),
    ]
