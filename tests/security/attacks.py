"""Files and messages that were made to harm who reads them; nothing of this is stored as it is, all of it is built."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper

DEEP = 30_000


class Executed(Exception):  # noqa: N818 - what a test waits for
    """A pickle was loaded."""


class _Payload:
    """Its pickle runs code where it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Executed, ("pickle",)


PICKLES = tuple(pickle.dumps({"weight": _Payload()}, protocol) for protocol in (0, 2, 5))
MSGPACK_BOMBS = (
    b"\x91" * 60_000,
    b"\x81\xa1a" * 20_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x81\xa4type" + b"\x91" * DEEP,
    b"\x82\xa4type\xa5offer\xa1z" + b"\x91" * DEEP,
)
JSON_BOMBS = (
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b'{"a":' + b"9" * 10_000 + b"}",
    b'{"a": 1e999999, "a": NaN, "b": -Infinity}',
    b'{"text": "\\ud800", "label": "x"}',
    b'{"text": "\xff", "label": "x"}',
    b'\xef\xbb\xbf{"text": "a", "label": "b"}',
)
TOML_BOMBS = (
    b"device = " + b"[" * DEEP,
    b"a" + b".a" * DEEP + b" = 1",
    b"seed = " + b"9" * 5_000,
    b"seed = 1e400\nthreads = nan",
    b'device = "\xff"',
    b'device = "a\\u0000b"',
    b"device = 2026-02-30",
    b'"\\u202e" = 1',
)


def with_deep_field(packed: bytes) -> bytes:
    """A MessagePack map of fewer than 15 entries with one more, which no reader knows, nested deeply."""
    return bytes([packed[0] + 1]) + packed[1:] + b"\xa1z" + b"\x91" * DEEP + b"\x01"


# -- tensor files


def tensor_file(header: Mapping[str, object] | bytes, rows: bytes = b"", said: int | None = None) -> bytes:
    """A file with this header, whose length is said to be another one where ``said`` is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if said is None else said) + text + rows


def _entry(dtype: str, shape: list[int], first: int, last: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


TENSOR_FILES = (
    tensor_file({"a": _entry("F32", [2], 0, 8), "b": _entry("F32", [2], 4, 12)}, bytes(12)),  # overlap
    tensor_file({"a": _entry("F32", [1], 4, 8)}, bytes(8)),  # a gap
    tensor_file({"a": _entry("F32", [2**62], 0, 2**64 - 1)}, bytes(8)),
    tensor_file({"a": _entry("F32", [2**31, 2**31, 4], 0, 0)}),  # whose size is 0 in 64 bits
    tensor_file({"a": _entry("F32", [0, 2**62], 0, 0)}),
    tensor_file({"a": _entry("F32", [-2, -1], 0, 8)}, bytes(8)),
    tensor_file({"a": _entry("F32", [1] * 5_000, 0, 4)}, bytes(4)),
    tensor_file({"a": _entry("O", [1], 0, 8)}, bytes(8)),
    tensor_file({"a": _entry("BF16", [4], 0, 8)}, bytes(8)),
    tensor_file({"__metadata__": {"format": "pt"}}),
    tensor_file({f"t{number}": _entry("I8", [0], 0, 0) for number in range(15_000)}),
    tensor_file(b'{"a":' + b"[" * DEEP),
    tensor_file(b"{" + b" " * 2**20 + b"}"),
    tensor_file(b'{"\xff": 1}'),
    tensor_file(b"{}", said=2**64 - 1),
    tensor_file(b"{}", said=2**63),
    *PICKLES,
)


# -- archives


def npz(**members: bytes) -> bytes:
    """A .npz of members that need not be arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    """An array as numpy.save writes it; objects as pickles."""
    file = io.BytesIO()
    np.lib.format.write_array(file, values, allow_pickle=True)
    return file.getvalue()


def npy_header(dtype: str, shape: str, rows: bytes = b"") -> bytes:
    """An array that says what it is, whatever follows."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + rows


BOMB_BYTES = 80 << 20


@cache
def npz_bomb() -> bytes:
    """A thousandth of what it unpacks to."""
    return npz(x=npy_header("<f4", f"(1, {BOMB_BYTES // 4}, 1)", bytes(BOMB_BYTES)), y=npy(np.array(["a"])))


_LABELS = npy(np.array(["a", "b"]))
NPZ_FILES = (
    npz(x=npy(np.array([_Payload(), _Payload()], dtype=object)), y=_LABELS),
    npz(x=npy(np.zeros((2, 3, 1), np.float32)), y=npy(np.array([_Payload(), _Payload()], dtype=object))),
    npz(x=npy_header("<f4", "(2, 10000000000, 3)"), y=_LABELS),
    npz(x=npy_header("<f4", "(-2, 3, 1)", bytes(24)), y=_LABELS),
    npz(x=npy_header("<f4", "(" * 200 + ")" * 200), y=_LABELS),
    npz(x=npy_header("|O", "(2, 3, 1)", PICKLES[0]), y=_LABELS),
    npz(x=npy_header("<U1000000000", "(2, 3, 1)"), y=_LABELS),
    npz(x=PICKLES[1], y=_LABELS),
    *PICKLES,
)


def tar(*members: tuple[str, bytes], links: Mapping[str, str] | None = None, mode: str = "w") -> bytes:
    """An archive of files by any name, and of links to anywhere."""
    file = io.BytesIO()
    options = {"compresslevel": 1} if ":" in mode else {}
    with tarfile.open(fileobj=file, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return file.getvalue()


def sparse_tar(name: str, size_bytes: int) -> bytes:
    """A member of which the archive has nothing, and that is said to be ``size_bytes`` of zeros."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo(name)
        entry.pax_headers = {"GNU.sparse.map": f"{size_bytes},0", "GNU.sparse.size": str(size_bytes)}
        archive.addfile(entry)
    return file.getvalue()


@cache
def tar_bombs() -> tuple[bytes, ...]:
    """Small files that unpack to large ones."""
    return (
        tar(("round.key", bytes(BOMB_BYTES)), mode="w:gz"),
        sparse_tar("round.key", 1 << 40),
        sparse_tar("coordinator.sqlite", 1 << 40),
    )


TAR_FILES = (
    tar(("../round.key", b"0" * 64)),
    tar(("/round.key", b"0" * 64)),
    tar(("blobs/../../escaped", b"x")),
    tar(("blobs/..", b"x"), ("blobs/.", b"x")),
    tar(("blobs/" + "a" * 64, b"x")),
    tar(links={"coordinator.sqlite": "/etc/passwd"}),
    tar(links={"blobs": "..", "round.key": "../../etc/shadow"}),
    tar(("round.key", b"0" * 64), ("round.key", b"1" * 64)),
)


# -- graphs


def onnx_with_file(location: str, *, in_node: bool = False) -> bytes:
    """A graph that gives as its output what 12 bytes of another file hold."""
    outside = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[12], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        outside.external_data.add(key=key, value=value)
    given, result = (helper.make_tensor_value_info(name, TensorProto.UINT8, [12]) for name in ("x", "y"))
    nodes = [helper.make_node("Constant", [], ["w"], value=outside)] if in_node else []
    nodes.append(helper.make_node("Identity", ["w"], ["y"]))
    graph = helper.make_graph(nodes, "reads", [given], [result], [] if in_node else [outside])
    return bytes(_model(graph).SerializeToString())


def onnx_of_another_domain() -> bytes:
    """A graph of an operator that only a library of its own could run."""
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    node = helper.make_node("Run", ["x"], ["y"], domain="evil", command="id")
    return bytes(_model(helper.make_graph([node], "runs", [given], [result]), "evil").SerializeToString())


def onnx_compiled_elsewhere() -> bytes:
    """A graph that is nothing but an engine compiled for one kind of hardware, in a file of its own."""
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="a.engine"
    )
    return bytes(_model(helper.make_graph([node], "loads", [given], [result]), "com.microsoft").SerializeToString())


def _model(graph: onnx.GraphProto, *domains: str) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
