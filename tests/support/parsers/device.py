"""What a device reads of its owner, of its own disk and of its training process."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from edge_sdk.data import read_examples
from edge_sdk.data.images import small_image
from edge_sdk.data.log import ExampleLog
from edge_sdk.data.store import _read_past
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import BlobCorruptError, ConfigurationError, DataFormatError, ModelFormatError, StorageError
from edge_sdk.inference.asking import _windows
from edge_sdk.inference.slots import Slots
from edge_sdk.profile import load_profile, profile_names
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import Encoding, EncodingKind
from edge_sdk.protocol.releases import ReleasedModel
from edge_sdk.security.secrets import read_secret
from edge_sdk.settings import example_file, from_environment, read_file
from edge_sdk.text import TextEncoder
from edge_sdk.training.checkpoint import Checkpoint, Trained
from edge_sdk.training.feedback import write_update
from edge_sdk.training.job import Finished, Noted, TrainingResult
from edge_sdk.training.process import _parse
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.web import check_address
from tests.security import attacks
from tests.support import mutation
from tests.support.logistic_graph import parameters, tokenizer_json, training_job
from tests.support.parsers.parser import Parser, of_file

_SETTINGS = (
    b'device = "pi"\nbroker = "mqtts://host:8883"\ndata = "mail.csv"\nheld_out_share = 0.2\nthreads = 2\n'
    b'providers = ["CPUExecutionProvider"]\n[policy]\nquiet_hours = ["22:00-07:00"]\nbattery_floor_share = 0.3\n'
)


def parsers(folder: Path) -> list[Parser]:
    """All of this room; files lie in ``folder``."""
    return [
        *_settings_parsers(folder),
        *_address_parsers(folder),
        *_example_parsers(folder),
        *_disk_parsers(folder),
        *_training_parsers(folder),
    ]


def _settings_parsers(folder: Path) -> list[Parser]:
    profile = Path(__file__).parents[3] / "device_profiles" / f"{profile_names()[0]}.toml"
    return [
        Parser(
            "settings",
            of_file(folder / "agent.toml", read_file),
            (_SETTINGS, example_file().encode()),
            ConfigurationError,
            weight=3,
            attacks=attacks.TOML_BOMBS,
        ),
        Parser(
            "environment",
            _environment,
            (b"SEED=7\0PROVIDERS=a,b\0POLICY_QUIET_HOURS=1:00-2:00",),
            ConfigurationError,
            weight=3,
        ),
        Parser(
            "device profile",
            of_file(folder / "board.toml", lambda path: load_profile(str(path))),
            (profile.read_bytes(),),
            ConfigurationError,
            weight=1,
            attacks=attacks.TOML_BOMBS,
        ),
    ]


def _address_parsers(folder: Path) -> list[Parser]:
    """Where to connect to, and by what password."""
    return [
        Parser("broker address", _address, (b"mqtt://localhost:1883", b"mqtts://[::1]"), ConfigurationError, weight=30),
        Parser(
            "web address",
            lambda data: check_address(data.decode("utf-8", "replace")),
            (b"https://host/a", b"http://127.0.0.1:80/"),
            ConfigurationError,
            weight=30,
        ),
        Parser("password file", of_file(folder / "password", read_secret), (b"secret\n",), ConfigurationError),
    ]


def _example_parsers(folder: Path) -> list[Parser]:
    """A device's data in every format, and what it is asked about."""
    windows = attacks.npy(np.zeros((2, 3, 1), np.float32))
    arrays = attacks.npz(x=windows, y=attacks.npy(np.array(["a", "b"])))
    lines = (
        b'{"text": "cheap pills", "label": "spam"}\n{"text": "noon", "label": "ham"}\n',
        b'{"tokens": ["a", "b"], "tags": ["O", "X"]}\n',
        b'{"x": [[1, 2], [3, 4.5]], "y": 0}\n{"x": [[1, 2], [3, 4]], "y": 1}\n',
    )
    csv = (b'text,label\n"cheap, ""pills""",spam\nsee you at noon,ham\n', b"source,target\na,b\n")
    tables = tuple(map(_parquet, (("text", "label"), ("source", "target"))))

    def examples(kind: str) -> Callable[[bytes], object]:
        return of_file(folder / f"data.{kind}", read_examples)

    spooled = of_file(folder / "spooled.npz", partial(read_examples, scratch=folder))

    def windows_in(kind: str) -> Callable[[bytes], object]:
        return of_file(folder / f"asked.{kind}", lambda path: _windows(path, (3, 1)))

    arrays_known = (*attacks.NPZ_FILES, attacks.npz_bomb())
    return [
        Parser("examples, csv", examples("csv"), csv, DataFormatError),
        Parser(
            "examples, jsonl",
            examples("jsonl"),
            lines,
            DataFormatError,
            mutation.json_lines,
            attacks=attacks.JSON_BOMBS,
        ),
        Parser("examples, npz", examples("npz"), (arrays,), DataFormatError, weight=3, attacks=arrays_known),
        Parser("examples, npz to the disk", spooled, (arrays,), DataFormatError, weight=3, attacks=arrays_known),
        Parser("examples, parquet", examples("parquet"), tables, DataFormatError, weight=1, attacks=attacks.PICKLES),
        Parser("picture", _picture, _pictures(), DataFormatError, weight=2, attacks=(_huge(_pictures()[0]),)),
        Parser("question, npy", windows_in("npy"), (windows,), DataFormatError, attacks=attacks.PICKLES),
        Parser("question, csv", windows_in("csv"), (b"x\n1\n2\n3\n",), DataFormatError),
    ]


def _disk_parsers(folder: Path) -> list[Parser]:
    """What the device itself wrote, on a card that wears out."""
    folder = folder / "disk"
    slot = folder / "a"
    slot.mkdir(parents=True)
    (folder / "current").write_text("a")
    submodel = Submodel((0,), (1,), (4,))
    model = ReleasedModel(release=2, task="news", submodel=submodel, labels=("a", "b"), max_tokens=8, manifest=())

    def sealed(path: Path) -> object:
        """Past the digest, so that whatever is in the line is decoded."""
        line = path.read_bytes()
        path.write_bytes(b"%b\n%b" % (line, digest_of(line).encode()))
        return Slots(folder).current()

    return [
        Parser(
            "slot",
            of_file(slot / "slot.json", sealed),
            (msgspec.json.encode(model),),
            BlobCorruptError,
            mutation.json_or_torn,
            attacks=attacks.JSON_BOMBS,
        ),
        Parser(
            "examples that were learnt",
            of_file(folder / "learnt.jsonl", lambda path: ExampleLog(path).read()),
            (b'{"text": "cheap pills", "label": "spam"}\n',),
            DataFormatError,
            mutation.json_lines,
            weight=3,
            attacks=attacks.JSON_BOMBS,
        ),
        Parser(
            "split of examples",
            of_file(folder / "split.json", _read_past),
            (b'{"held_out": [0.5], "training": [0.25, 0.75]}',),
            StorageError,
            mutation.json_or_torn,
            attacks=attacks.JSON_BOMBS,
        ),
    ]


def _training_parsers(folder: Path) -> list[Parser]:
    """Of a training process: its files, and what it says."""
    (folder / "job").mkdir()
    checkpoint, residual = folder / "checkpoint", folder / "residual"
    job = training_job(folder / "job", checkpoint=str(checkpoint))
    state = {"weights": np.arange(5, dtype=np.float32), "steps": np.array([3], dtype=np.int64)}
    Checkpoint(job).save(state, Trained(3, 1.5, 0.25, 12.5))
    lossy = msgspec.structs.replace(job, encoding=Encoding(kind=EncodingKind.INT8), new_residual=str(residual))
    deltas = {name: values for name, values in parameters(3).items() if name.startswith("classifier")}
    write_update(lossy, {name: values.copy() for name, values in deltas.items()})
    told = msgspec.structs.replace(lossy, residual=str(residual), new_residual="")
    result = TrainingResult(samples=1, steps=1, loss_first=1.0, loss_last=0.5, seconds=1.0, peak_memory_bytes=1)
    said = (Finished(result), Noted(30, "a word"))
    return [
        Parser(
            "checkpoint",
            of_file(checkpoint, lambda _: _restored(Checkpoint(job))),
            (checkpoint.read_bytes(),),
            (),
            mutation.tensor_file,
            5,
            attacks.TENSOR_FILES,
        ),
        Parser(
            "what earlier updates lost",
            of_file(residual, lambda _: write_update(told, {name: values.copy() for name, values in deltas.items()})),
            (residual.read_bytes(),),
            (),
            mutation.tensor_file,
            5,
            attacks.TENSOR_FILES,
        ),
        Parser(
            "word of a training process",
            _parse,
            tuple(map(msgspec.json.encode, said)),
            (),
            mutation.json_or_torn,
            200,
            attacks.JSON_BOMBS,
        ),
        Parser(
            "tokenizer",
            lambda data: TextEncoder(data, 8),
            (tokenizer_json(),),
            ModelFormatError,
            mutation.json_or_torn,
            attacks=attacks.JSON_BOMBS,
        ),
    ]


def _environment(data: bytes) -> object:
    pairs = (entry.partition("=") for entry in os.fsdecode(data).split("\0"))
    return from_environment({f"RAFFM_EDGE_{name}": text for name, _, text in pairs})


def _address(data: bytes) -> None:
    """What is read is written so that it is read again as the same."""
    found = BrokerAddress.parse(data.decode("utf-8", "replace"))
    assert BrokerAddress.parse(str(found)) == found


def _restored(checkpoint: Checkpoint) -> object:
    found = checkpoint.load()
    return None if found is None else dict(found[1])


def _picture(data: bytes) -> object:
    return small_image({"bytes": data}, 16, "row 1")


def _parquet(names: Sequence[str]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({name: ["a", "b"] for name in names}), file)
    return file.getvalue()


def _pictures() -> tuple[bytes, ...]:
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    files = [io.BytesIO() for _ in range(4)]
    for file, kind in zip(files, ("PNG", "JPEG", "BMP", "WEBP"), strict=True):
        image.save(file, kind)
    return tuple(file.getvalue() for file in files)


def _huge(png: bytes) -> bytes:
    """The same with another head: more than 64 MiB of pixels, if they came."""
    head = png[12:16] + (9000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]
