"""What a coordinator reads of its devices, of its operators and of its own disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from coordinator.aggregation.admission import Limits, Rejected, admit_file
from coordinator.api.access import bearer_of, make_token
from coordinator.backup import back_up, restore
from coordinator.config import TaskConfig, parse_encoding, task_of_file
from coordinator.delivery.keys import own_key
from coordinator.store.opening import open_store
from coordinator.store.states import AccessRole
from edge_sdk.decoding import UNDECODABLE
from edge_sdk.elastic.slicing import Region
from edge_sdk.errors import ConfigurationError, RaffmError
from edge_sdk.protocol.encodings import encode
from edge_sdk.protocol.messages import Encoding, EncodingKind, TrainingReport
from edge_sdk.protocol.signing import Role
from tests.security import attacks
from tests.support import mutation
from tests.support.parsers.parser import Parser, of_file
from tests.support.parsers.wire import tensor_bytes

_REPORT = TrainingReport(
    samples=10,
    steps=1,
    loss_first=1.0,
    loss_last=0.5,
    seconds=1.0,
    peak_memory_bytes=1,
    downloaded_bytes=1,
    uploaded_bytes=1,
)
_TASK = (
    b'name = "news"\nmodel_dir = "model"\ncalibration_file = "a.csv"\ntest_file = "b.csv"\nrounds = 3\n'
    b'encoding = {kind = "topk", share = 0.1}\n[recipe]\nlearning_rate = 1e-3\nbatch_size = 8\nepochs = 1\n'
    b'max_tokens = 16\n[targets]\ndevices = ["pi-*"]\n[schedule]\nhours = ["22:00:00", "06:00:00"]\n'
)


def parsers(folder: Path) -> list[Parser]:
    """All of this room; files lie in ``folder``."""
    return [*_update_parsers(folder), *_task_parsers(folder), *_state_parsers(folder)]


def _update_parsers(folder: Path) -> list[Parser]:
    """An update in each encoding."""
    base = {name: np.ones(shape, np.float32) for name, shape in {"weight": (3, 4), "bias": (3,)}.items()}
    slices = {name: Region(tuple((range(size),) for size in array.shape)) for name, array in base.items()}
    deltas = {name: np.float32(0.01) * array for name, array in base.items()}

    def admitting(report: TrainingReport) -> Callable[[bytes], object]:
        return of_file(folder / "update", lambda path: admit_file(path, base, slices, report, Limits()))

    return [
        Parser(
            f"update in {kind.value}",
            admitting(msgspec.structs.replace(_REPORT, encoding=encoding)),
            (tensor_bytes(encode(deltas, encoding, 0)),),
            Rejected,
            mutation.tensor_file,
            10,
            attacks.TENSOR_FILES,
        )
        for kind in EncodingKind
        for encoding in (Encoding(kind=kind, share=0.5),)
    ]


def _task_parsers(folder: Path) -> list[Parser]:
    """What an operator writes."""
    config = task_of_file(_written(folder / "task.toml", _TASK))
    return [
        Parser(
            "task, TOML",
            of_file(folder / "task.toml", task_of_file),
            (_TASK,),
            ConfigurationError,
            weight=2,
            attacks=attacks.TOML_BOMBS,
        ),
        Parser(
            "task, JSON",
            _task_of_json,
            (msgspec.json.encode(config),),
            ConfigurationError,
            mutation.json_or_torn,
            attacks=attacks.JSON_BOMBS,
        ),
        Parser(
            "encoding",
            lambda data: parse_encoding(data.decode("utf-8", "replace")),
            (b"fp16", b"topk:0.1"),
            ConfigurationError,
            weight=30,
        ),
    ]


def _state_parsers(folder: Path) -> list[Parser]:
    """A backup, and the secret of a token."""
    state = folder / "state"
    store = open_store(state)
    secret = make_token(store, "reader", AccessRole.VIEWER, None, 0.0, "test")
    own_key(state, Role.ROUND)
    back_up(state, folder / "backup.tar")

    def bearer(data: bytes) -> object:
        with store.reading() as tx:
            return bearer_of(tx, data.decode("latin-1"), 0.0)

    def restored(path: Path) -> None:
        shutil.rmtree(folder / "restored", ignore_errors=True)
        restore(path, folder / "restored")

    return [
        Parser(
            "backup",
            of_file(folder / "backup.tar", restored),
            ((folder / "backup.tar").read_bytes(),),
            RaffmError,
            weight=0,
            attacks=(*attacks.TAR_FILES, *attacks.tar_bombs()),
        ),
        Parser("token", bearer, (secret.encode(),), (), weight=3),
    ]


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _task_of_json(data: bytes) -> object:
    """As the API does with what FastAPI has decoded."""
    try:
        settings = msgspec.json.decode(data)
    except UNDECODABLE:
        return None
    try:
        return msgspec.convert(settings, TaskConfig)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"task: {error}") from error
