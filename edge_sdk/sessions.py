"""Sessions of onnxruntime: on a GPU if onnxruntime offers one that works, else on the processor.

A module of its own, since importing it loads onnxruntime. Inputs and outputs of a session lie in the processor's
memory; onnxruntime copies them to a GPU and back.

A graph comes from a coordinator and must not read the device's files. ONNX allows weights to lie in other files, by
paths that older versions of onnxruntime follow anywhere, and a graph could return what it reads as a gradient. So a
graph that names a file, for weights or for an engine compiled elsewhere, is refused before it is loaded.
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
"""What creating and running a session raise; onnxruntime gives these no common base class."""

# The byte strings below are how protobuf writes the tag of field 1 or 4 (a string) and its length, also in encodings
# that are longer than they need to be.
_STRING_1, _STRING_4 = rb"(\x0a|\x8a\x80*\x00)", rb"(\x22|\xa2\x80*\x00)"
_MAX_BEFORE = 20  # bytes of a tag and a length, each a varint of at most ten
_OUTSIDE = {
    b"location": re.compile(_STRING_1 + rb"(\x08|\x88\x80*\x00)\Z"),  # StringStringEntryProto.key of external data
    b"EPContext": re.compile(_STRING_4 + rb"(\x09|\x89\x80*\x00)\Z"),  # NodeProto.op_type
}


def runtime_version() -> str:
    """The version of the installed onnxruntime."""
    return str(ort.__version__)


def session_options(threads: int) -> ort.SessionOptions:
    """Session options for a device whose other programs come first and whose memory is scarce."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # keeps a plan and its memory for every shape of batch
    return options


def open_session(
    model: str, options: ort.SessionOptions, wanted: Sequence[str] | None, offered: Sequence[str] | None = None
) -> ort.InferenceSession:
    """A session for the file ``model`` on the ``wanted`` execution providers (``None``: CUDA) that exist and load.

    ``offered`` are the providers that onnxruntime was built with. A wanted one that is missing or fails is logged, and
    the processor takes its place. Raises one of ``FAILURES`` if the processor cannot run ``model`` either, and
    ``ModelFormatError`` if the model names another file.
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
    """The providers to try, in this order: those ``wanted`` that are ``offered``, and the processor last.

    >>> providers_of(None, ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"])
    ['CUDAExecutionProvider', 'CPUExecutionProvider']
    >>> providers_of([], ["CUDAExecutionProvider", "CPUExecutionProvider"])
    ['CPUExecutionProvider']
    """
    chosen = _PREFERRED if wanted is None else wanted
    return [*(name for name in chosen if name in offered and name != _CPU), _CPU]


def _refuse_files(model: Path) -> None:
    """Raise ``ModelFormatError`` if a tensor of the model lies in another file, or a node is a compiled engine.

    Protobuf can express either only by a string that consists of one certain word, preceded by its field's tag and its
    length. Searching for those bytes misses no such file; a model that is refused in error has a value of that name.
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
        if before.search(pages[max(0, place - _MAX_BEFORE) : place]):
            return True
        place = pages.find(word, place + 1)
    return False


def _note(lacking: set[str], why: str) -> None:
    if lacking:
        _log.warning("%s %s; the model runs on the CPU instead", ", ".join(sorted(lacking)), why)
