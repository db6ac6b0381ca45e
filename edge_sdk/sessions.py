"""Sessions of onnxruntime: on a GPU where it offers one that works, else on the processor.

Apart from those who run them, since importing this loads onnxruntime. What a session is fed lies in the processor's
memory and so does what it returns; onnxruntime copies to a GPU and back.

A graph comes from a coordinator and may read no file of the device: ONNX lets weights lie in other files, by paths that
older versions of onnxruntime follow anywhere, and what a graph reads it can give back as a gradient. So a graph that
names a file, for weights or for an engine that was compiled elsewhere, is refused before it is loaded.
"""

from __future__ import annotations

import logging
import mmap
import re
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from edge_sdk.decoding import brief
from edge_sdk.errors import ModelFormatError

_log = logging.getLogger(__name__)
_CPU = "CPUExecutionProvider"
_PREFERRED = ("CUDAExecutionProvider",)
FAILURES = (
    errors.EPFail,
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)
"""What making and running a session raise, which have no base of their own."""


_STRING_1, _STRING_4 = rb"(\x0a|\x8a\x80*\x00)", rb"(\x22|\xa2\x80*\x00)"
_MOST_BEFORE = 20  # bytes that two numbers may take
_OUTSIDE = {
    b"location": re.compile(_STRING_1 + rb"(\x08|\x88\x80*\x00)\Z"),  # StringStringEntryProto.key of external data
    b"EPContext": re.compile(_STRING_4 + rb"(\x09|\x89\x80*\x00)\Z"),  # NodeProto.op_type
}


def runtime_version() -> str:
    """Onnxruntime's."""
    return str(ort.__version__)


def session_options(threads: int) -> ort.SessionOptions:
    """Options for a device whose other programs go first, and whose memory is short."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # keeps a plan and its memory for every shape of batch
    return options


def open_session(
    model: str, options: ort.SessionOptions, wanted: Sequence[str] | None, offered: Sequence[str] | None = None
) -> ort.InferenceSession:
    """A session on the ``wanted`` execution providers, by default CUDA, as far as they are there and load.

    ``offered`` is what onnxruntime was built with. What is wanted in vain is logged, and the processor stands in.
    Raises one of ``FAILURES`` where it cannot run ``model`` either, ``ModelFormatError`` where that names a file.
    """
    _refuse_files(Path(model))
    offered = ort.get_available_providers() if offered is None else offered
    tried = providers_of(wanted, offered)
    _note(set(wanted or ()) - {*offered}, "is not in this onnxruntime")
    try:
        session = ort.InferenceSession(model, options, tried, enable_fallback=0)
    except (*FAILURES, RuntimeError) as error:
        if tried == [_CPU]:
            raise
        _note({*tried} - {_CPU}, f"fails: {brief(error)}")
        return ort.InferenceSession(model, options, [_CPU], enable_fallback=0)
    _note({*tried} - {*session.get_providers()}, "cannot be loaded")
    return session


def providers_of(wanted: Sequence[str] | None, offered: Sequence[str]) -> list[str]:
    """What to try, the first first: what is ``wanted`` and ``offered``; the processor takes what they leave.

    >>> providers_of(None, ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"])
    ['CUDAExecutionProvider', 'CPUExecutionProvider']
    >>> providers_of([], ["CUDAExecutionProvider", "CPUExecutionProvider"])
    ['CPUExecutionProvider']
    """
    chosen = _PREFERRED if wanted is None else wanted
    return [*(name for name in chosen if name in offered and name != _CPU), _CPU]


def _refuse_files(model: Path) -> None:
    """``ModelFormatError`` where any tensor of the model lies in another file, or a node is a compiled engine.

    Protobuf can say both only by a string that is just one word, after its field's number and its length, written with
    idle bytes or without. So no file is missed; what is refused in vain is a model with a value of such a name.
    """
    try:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            found = [word.decode() for word, before in _OUTSIDE.items() if _has(pages, word, before)]
    except (OSError, ValueError):  # not there, or empty: onnxruntime says so
        return
    if found:
        raise ModelFormatError(f"model {model} needs files beside it ({', '.join(found)}): export it as one file")


def _has(pages: mmap.mmap, word: bytes, before: re.Pattern[bytes]) -> bool:
    place = pages.find(word)
    while place >= 0:
        if before.search(pages[max(0, place - _MOST_BEFORE) : place]):
            return True
        place = pages.find(word, place + 1)
    return False


def _note(lacking: set[str], why: str) -> None:
    if lacking:
        _log.warning("%s %s; the processor runs the model instead", ", ".join(sorted(lacking)), why)
