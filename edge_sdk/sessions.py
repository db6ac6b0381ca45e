"""Sessions of onnxruntime: on a GPU where it offers one that works, else on the processor.

Apart from those who run them, since importing this loads onnxruntime. What a session is fed lies in the processor's
memory and so does what it returns; onnxruntime copies to a GPU and back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as errors

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
    Raises one of ``FAILURES`` where it cannot run ``model`` either.
    """
    offered = ort.get_available_providers() if offered is None else offered
    tried = providers_of(wanted, offered)
    _note(set(wanted or ()) - {*offered}, "is not in this onnxruntime")
    try:
        session = ort.InferenceSession(model, options, tried, enable_fallback=0)
    except (*FAILURES, RuntimeError) as error:
        if tried == [_CPU]:
            raise
        _note({*tried} - {_CPU}, f"fails: {str(error).splitlines()[0][:300]}")
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


def _note(lacking: set[str], why: str) -> None:
    if lacking:
        _log.warning("%s %s; the processor runs the model instead", ", ".join(sorted(lacking)), why)
